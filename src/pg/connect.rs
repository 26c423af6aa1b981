//! From the connection parameters to a logged-in connection: hosts, addresses, encryption, startup
//! packet, authentication, up to ReadyForQuery.

use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use tokio::time::timeout;

use super::auth;
use super::error::{Error, Kind, Phase};
use super::params::{Host, Params, TargetSessionAttrs};
use super::socket::{Encryption, Socket, Target, resolve};
use super::wire::Conn;

/// Tries the hosts in their order, with every address and way of encryption they allow, until
/// one accepts the login and the session is of the kind wanted.
pub(super) async fn connect(params: &Params, startup: &[(&str, &str)]) -> Result<Conn, Error> {
    let mut failed = Vec::new();
    for host in &params.hosts {
        match connect_host(params, host, startup).await {
            Ok(conn) => return Ok(conn),
            Err(error) if error.another_host_may_do() => failed.push(error),
            Err(error) => return Err(error),
        }
    }
    Err(Error::of_hosts(failed))
}

async fn connect_host(
    params: &Params,
    host: &Host,
    startup: &[(&str, &str)],
) -> Result<Conn, Error> {
    let fail = |kind| Error::new(Phase::Connect, host.to_string(), kind);
    let resolved = within(params, async { Ok(resolve(host).await) }).await;
    let targets = resolved.and_then(|targets| targets).map_err(fail)?;
    let mut last = None;
    for target in &targets {
        let attempt = connect_target(params, (host, target), startup);
        match within(params, async { Ok(attempt.await) }).await {
            Ok(Ok(conn)) => return Ok(conn),
            Ok(Err(error)) if !error.another_host_may_do() => return Err(error),
            Ok(Err(error)) => last = Some(error),
            Err(kind) => last = Some(fail(kind)),
        }
    }
    Err(last.unwrap_or_else(|| fail(Kind::Closed)))
}

async fn connect_target(
    params: &Params,
    (host, target): (&Host, &Target),
    startup: &[(&str, &str)],
) -> Result<Conn, Error> {
    let mut first = None;
    for &encryption in Encryption::attempts(params, &host.address) {
        let mut encrypted = false;
        let outcome = match Socket::open(params, host, target, encryption).await {
            Ok(socket) => {
                encrypted = socket.encrypted();
                log_in(socket, params, host, startup).await
            }
            Err(kind) => Err(Error::new(Phase::Connect, host.to_string(), kind)),
        };
        match outcome {
            Ok(conn) => return Ok(conn),
            Err(error) => {
                let retry = error.other_encryption_may_do(params.sslmode, encrypted);
                // The first error is about what was asked for.
                let error = first.get_or_insert(error);
                if !retry {
                    break;
                }
                tracing::debug!(%error, "trying the other encryption");
            }
        }
    }
    Err(first.unwrap_or_else(|| Error::new(Phase::Connect, host.to_string(), Kind::Closed)))
}

/// Startup packet, authentication, parameters, up to ReadyForQuery.
pub(super) async fn log_in(
    socket: Socket,
    params: &Params,
    host: &Host,
    startup: &[(&str, &str)],
) -> Result<Conn, Error> {
    let mut conn = Conn::new(socket, host.to_string());
    let done = greet(&mut conn, (params, host), startup).await;
    done.map_err(|kind| conn.error(kind))?;
    conn.logged_in();
    Ok(conn)
}

async fn greet(
    conn: &mut Conn,
    (params, host): (&Params, &Host),
    startup: &[(&str, &str)],
) -> Result<(), Kind> {
    let mut parameters = vec![
        ("user", params.user.as_str()),
        ("database", &params.dbname),
        ("application_name", &params.application_name),
        ("client_encoding", "UTF8"),
    ];
    parameters.extend(
        params
            .options
            .as_deref()
            .map(|options| ("options", options)),
    );
    parameters.extend(startup);
    conn.queue(|queued| frontend::startup_message(parameters, queued))?;
    auth::authenticate(conn, params, host).await?;
    let mut session = SessionStatus::default();
    loop {
        let packet = conn.next().await?;
        conn.greeting.extend_from_slice(packet.as_bytes());
        match packet.parse()? {
            Message::ParameterStatus(body) => {
                let name = body.name().map_err(Kind::Parse)?;
                session.note(name, body.value().map_err(Kind::Parse)?);
            }
            Message::BackendKeyData(body) => conn.backend_pid = body.process_id(),
            Message::ReadyForQuery(_) => break,
            _ => return Err(Kind::Malformed("the end of the login")),
        }
    }
    match session.will_do(params.target_session_attrs) {
        true => Ok(()),
        false => Err(Kind::ReadOnly),
    }
}

async fn within<T>(
    params: &Params,
    step: impl Future<Output = Result<T, Kind>>,
) -> Result<T, Kind> {
    match params.connect_timeout {
        Some(limit) => timeout(limit, step)
            .await
            .map_err(|_| Kind::Timeout(limit))?,
        None => step.await,
    }
}

/// What the server reports about the session by itself (14 and newer).
#[derive(Default)]
struct SessionStatus {
    in_hot_standby: bool,
    default_transaction_read_only: bool,
}

impl SessionStatus {
    fn note(&mut self, name: &str, value: &str) {
        match name {
            "in_hot_standby" => self.in_hot_standby = value == "on",
            "default_transaction_read_only" => self.default_transaction_read_only = value == "on",
            _ => {}
        }
    }

    fn will_do(&self, wanted: TargetSessionAttrs) -> bool {
        match wanted {
            TargetSessionAttrs::Any => true,
            TargetSessionAttrs::Primary => !self.in_hot_standby,
            TargetSessionAttrs::ReadWrite => {
                !self.in_hot_standby && !self.default_transaction_read_only
            }
        }
    }
}
