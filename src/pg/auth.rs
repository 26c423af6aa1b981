//! Logging in: trust, password, md5, SCRAM-SHA-256 and SCRAM-SHA-256-PLUS, each with what libpq
//! refuses. Knows neither sockets nor what comes after AuthenticationOk.

use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{self, ScramSha256};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;

use super::error::{AuthError, Kind};
use super::params::{ChannelBinding, Host, Params, Secret, passfile};
use super::socket::Protection;
use super::wire::Conn;

/// Answers the server's requests until AuthenticationOk.
pub(super) async fn authenticate(
    conn: &mut Conn,
    params: &Params,
    host: &Host,
) -> Result<(), Kind> {
    let request = conn.next().await?.parse()?;
    if let Message::AuthenticationSasl(body) = &request {
        let password = password(params, host)?;
        return scram(conn, params.channel_binding, &password, body).await;
    }
    if params.channel_binding == ChannelBinding::Require {
        return Err(unbound("the server does not ask for SCRAM"));
    }
    match request {
        Message::AuthenticationOk => Ok(()),
        Message::AuthenticationCleartextPassword if conn.private() => {
            let password = password(params, host)?;
            send_password(conn, password.expose().as_bytes()).await
        }
        Message::AuthenticationCleartextPassword => Err(Kind::Auth(AuthError::Cleartext)),
        Message::AuthenticationMd5Password(body) => {
            let password = password(params, host)?;
            let password = password.expose().as_bytes();
            let hash = md5_hash(params.user.as_bytes(), password, body.salt());
            send_password(conn, hash.as_bytes()).await
        }
        Message::AuthenticationGss => unsupported("GSSAPI (Kerberos) authentication"),
        Message::AuthenticationSspi => unsupported("SSPI authentication"),
        Message::AuthenticationKerberosV5 => unsupported("Kerberos V5 authentication"),
        Message::AuthenticationScmCredential => unsupported("SCM credentials"),
        _ => Err(Kind::Malformed("the authentication request")),
    }
}

fn unsupported(method: &'static str) -> Result<(), Kind> {
    Err(Kind::Auth(AuthError::Unsupported(method)))
}

fn unbound(reason: &'static str) -> Kind {
    Kind::Auth(AuthError::Unbound(reason))
}

fn password(params: &Params, host: &Host) -> Result<Secret, Kind> {
    if let Some(password) = &params.password {
        return Ok(password.clone());
    }
    let login = passfile::Login {
        host: host.passfile_name(),
        port: host.port,
        dbname: &params.dbname,
        user: &params.user,
    };
    let found = match &params.passfile {
        Some(path) => passfile::look_up(path, login),
        None => Ok(None),
    };
    found
        .map_err(|error| Kind::Auth(AuthError::Passfile(error)))?
        .ok_or(Kind::Auth(AuthError::NoPassword))
}

async fn send_password(conn: &mut Conn, password: &[u8]) -> Result<(), Kind> {
    conn.queue(|queued| frontend::password_message(password, queued))?;
    expect_ok(conn).await
}

async fn expect_ok(conn: &mut Conn) -> Result<(), Kind> {
    match conn.next().await?.parse()? {
        Message::AuthenticationOk => Ok(()),
        _ => Err(Kind::Malformed("the answer to our password")),
    }
}

/// RFC 5802 with RFC 7677. The server's signature is checked before AuthenticationOk is accepted.
async fn scram(
    conn: &mut Conn,
    wanted: ChannelBinding,
    password: &Secret,
    offer: &AuthenticationSaslBody,
) -> Result<(), Kind> {
    let (mechanism, binding) = choose(conn.protection(), wanted, offer)?;
    let mut scram = ScramSha256::new(password.expose().as_bytes(), binding);
    let first = scram.message().to_vec();
    conn.queue(|queued| frontend::sasl_initial_response(mechanism, &first, queued))?;
    match conn.next().await?.parse()? {
        Message::AuthenticationSaslContinue(body) => {
            check_iterations(body.data())?;
            scram.update(body.data()).map_err(scram_failed)?;
        }
        _ => return Err(Kind::Malformed("the server's first SCRAM message")),
    }
    let last = scram.message().to_vec();
    conn.queue(|queued| frontend::sasl_response(&last, queued))?;
    match conn.next().await?.parse()? {
        Message::AuthenticationSaslFinal(body) => {
            scram.finish(body.data()).map_err(scram_failed)?
        }
        _ => return Err(Kind::Malformed("the server's last SCRAM message")),
    }
    expect_ok(conn).await
}

fn scram_failed(error: std::io::Error) -> Kind {
    Kind::Auth(AuthError::Scram(error))
}

/// `pg_SASL_init`, fe-auth.c. `y` in the GS2 header says "I could bind, you do not offer it", which
/// a server that does offer it takes for an attack; so it is sent only where we really could.
fn choose(
    protection: &Protection,
    wanted: ChannelBinding,
    offer: &AuthenticationSaslBody,
) -> Result<(&'static str, sasl::ChannelBinding), Kind> {
    let mechanisms: Vec<_> = offer
        .mechanisms()
        .map(|mechanism| Ok(mechanism.to_owned()))
        .collect()
        .map_err(Kind::Parse)?;
    let offers = |mechanism| mechanisms.iter().any(|offered| offered == mechanism);
    let (plain, plus) = (
        offers(sasl::SCRAM_SHA_256),
        offers(sasl::SCRAM_SHA_256_PLUS),
    );
    if !plain && !plus {
        return Err(Kind::Auth(AuthError::Mechanisms(mechanisms.join(", "))));
    }
    let end_point = match protection {
        Protection::Tls { server_end_point } => server_end_point.clone(),
        // Somebody took the TLS away that the server thinks it is talking over.
        Protection::None | Protection::Unix if plus => {
            return Err(Kind::Auth(AuthError::Stripped));
        }
        Protection::None | Protection::Unix => None,
    };
    let end_point = end_point.filter(|_| wanted != ChannelBinding::Disable);
    match end_point {
        Some(hash) if plus => Ok((
            sasl::SCRAM_SHA_256_PLUS,
            sasl::ChannelBinding::tls_server_end_point(hash),
        )),
        _ if wanted == ChannelBinding::Require => Err(unbound(match (protection, plus) {
            (Protection::None | Protection::Unix, _) => "the connection is not encrypted",
            (_, false) => "the server does not offer SCRAM-SHA-256-PLUS",
            (_, true) => "the server's certificate has no hash to bind to",
        })),
        _ if !plain => Err(Kind::Auth(AuthError::Mechanisms(mechanisms.join(", ")))),
        Some(_) => Ok((sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested())),
        None => Ok((sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported())),
    }
}

/// What postgres-protocol accepts (MAX_ITERATION_COUNT, sasl.rs): each iteration costs us two hash
/// blocks before the server has proved anything. Checked here for the sake of the message.
const ITERATIONS_MAX: u64 = 100_000;

fn check_iterations(server_first: &[u8]) -> Result<(), Kind> {
    let iterations = server_first
        .split(|&byte| byte == b',')
        .find_map(|attribute| attribute.strip_prefix(b"i="))
        .and_then(|digits| str::from_utf8(digits).ok()?.parse().ok());
    match iterations {
        Some(iterations) if iterations > ITERATIONS_MAX => Err(Kind::Auth(AuthError::Iterations {
            iterations,
            iterations_max: ITERATIONS_MAX,
        })),
        // Anything else that is wrong with it is for the SCRAM implementation to say.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
