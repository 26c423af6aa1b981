//! Signing in: user and password, token, NKey, JWT with its seed, all at once if they are given.
//! Client certificates are in `tls`.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use nkeys::KeyPair;

use super::error::CredentialsError;
use super::options::{Options, SignIn};
use super::wire::Credentials;

/// Who signs in. Files are read anew for each connection.
#[derive(Default)]
pub(super) struct Identity {
    user: Option<(String, String)>,
    token: Option<String>,
    nkey: Option<KeyPair>,
    creds: Option<(String, KeyPair)>,
}

impl Identity {
    /// Reads what the options name. What is configured on its own goes before what a URL says.
    pub(super) async fn read(options: &Options) -> Result<Self, CredentialsError> {
        let mut identity = Self::default();
        match (&options.user, &options.password) {
            (Some(user), password) => {
                identity.user = Some((user.clone(), password.clone().unwrap_or_default()));
            }
            (None, Some(_)) => return Err(CredentialsError::NoUser),
            (None, None) => match options.of_url() {
                Some(SignIn::User { user, password }) => identity.user = Some((user, password)),
                Some(SignIn::Token(token)) => identity.token = Some(token),
                None => {}
            },
        }
        if let Some(token) = &options.token {
            identity.token = Some(token.clone());
        }
        if let Some(seed) = &options.nkey {
            identity.nkey = Some(KeyPair::from_seed(seed).map_err(CredentialsError::Nkey)?);
        }
        if let Some(path) = &options.creds {
            let text = tokio::fs::read_to_string(path).await;
            let text = text.map_err(|error| CredentialsError::Creds(path.clone(), error))?;
            identity.creds = Some(of_creds(&text, path)?);
        }
        Ok(identity)
    }

    /// What proves it to a server that has sent this nonce.
    pub(super) fn prove(&self, nonce: &str) -> Result<Credentials<'_>, CredentialsError> {
        let sign = |pair: &KeyPair| {
            let signature = pair
                .sign(nonce.as_bytes())
                .map_err(CredentialsError::Sign)?;
            Ok(Some(BASE64_URL_SAFE_NO_PAD.encode(signature)))
        };
        let user = self.user.as_ref();
        let mut credentials = Credentials {
            user: user.map(|(user, _)| user.as_str()),
            pass: user.map(|(_, password)| password.as_str()),
            auth_token: self.token.as_deref(),
            ..Credentials::default()
        };
        if let Some(pair) = &self.nkey {
            credentials.nkey = Some(pair.public_key());
            credentials.signature = sign(pair)?;
        }
        // There is room for one signature.
        if let Some((jwt, pair)) = &self.creds {
            credentials.jwt = Some(jwt);
            credentials.signature = sign(pair)?;
        }
        Ok(credentials)
    }
}

/// A JWT and a seed, each between two lines of dashes.
fn of_creds(text: &str, path: &Path) -> Result<(String, KeyPair), CredentialsError> {
    let mut found = between_dashes(text);
    let lacks = |missing| CredentialsError::CredsLack {
        path: PathBuf::from(path),
        missing,
    };
    let jwt = found.next().ok_or_else(|| lacks("JWT"))?;
    let seed = found.next().ok_or_else(|| lacks("seed"))?;
    let pair = KeyPair::from_seed(seed);
    let pair = pair.map_err(|error| CredentialsError::CredsSeed(path.to_owned(), error))?;
    Ok((jwt.to_owned(), pair))
}

fn between_dashes(text: &str) -> impl Iterator<Item = &str> {
    let is_fence = |line: &str| line.len() > 6 && line.starts_with("---") && line.ends_with("---");
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let found: Vec<&str> = lines
        .windows(3)
        .filter(|around| is_fence(around[0]) && !is_fence(around[1]) && is_fence(around[2]))
        .map(|around| around[1])
        .filter(|line| !line.is_empty())
        .collect();
    found.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options::of_servers(vec!["nats://a".to_owned()])
    }

    async fn refused(options: &Options) -> String {
        let read = Identity::read(options).await;
        read.err().expect("it cannot be used").to_string()
    }

    #[tokio::test]
    async fn all_that_is_given_is_sent_and_what_is_configured_goes_before_the_url() {
        let pair = KeyPair::new_user();
        let options = Options {
            servers: vec!["nats://url:secret@a".to_owned()],
            user: Some("me".to_owned()),
            token: Some("token".to_owned()),
            nkey: Some(pair.seed().expect("a seed")),
            ..options()
        };
        let identity = Identity::read(&options).await.expect("an identity");
        let sent = identity.prove("nonce").expect("signed");
        let sent = serde_json::to_value(&sent).expect("JSON");
        assert_eq!(sent["user"], "me");
        assert_eq!(sent["pass"], "");
        assert_eq!(sent["auth_token"], "token");
        assert_eq!(sent["nkey"], pair.public_key());
        let signature = sent["sig"].as_str().expect("a signature");
        let signature = BASE64_URL_SAFE_NO_PAD.decode(signature).expect("base64");
        assert!(pair.verify(b"nonce", &signature).is_ok());
        assert_eq!(sent.get("jwt"), None);
    }

    #[tokio::test]
    async fn url_signs_in_where_nothing_else_is_configured() {
        let options = Options::of_servers(vec!["nats://s3cret@a".to_owned()]);
        let identity = Identity::read(&options).await.expect("an identity");
        let sent = identity.prove("").expect("nothing to sign");
        assert_eq!((sent.user, sent.auth_token), (None, Some("s3cret")));
    }

    #[test]
    fn creds_are_what_stands_between_dashes() {
        let text = "-----BEGIN NATS USER JWT-----\r\neyJ.a-b_c\r\n------END NATS USER JWT------\r\n\
            \n*** IMPORTANT ***\nkeep it secret\n\n-----BEGIN USER NKEY SEED-----\nSUA\n\
            ------END USER NKEY SEED------";
        let found: Vec<&str> = between_dashes(text).collect();
        assert_eq!(found, ["eyJ.a-b_c", "SUA"]);
        let nothing: Vec<&str> = between_dashes("-----BEGIN-----\n-----END-----\n").collect();
        assert_eq!(nothing, Vec::<&str>::new());
    }

    #[tokio::test]
    async fn what_cannot_be_used_is_told_before_anything_is_sent() {
        let of = |change: fn(&mut Options)| {
            let mut options = options();
            change(&mut options);
            options
        };
        let lonely = of(|options| options.password = Some("secret".to_owned()));
        assert!(refused(&lonely).await.contains("without nats.user"));
        let no_seed = of(|options| options.nkey = Some("SUsecret".to_owned()));
        let said = refused(&no_seed).await;
        assert!(
            said.contains("nats.nkey") && !said.contains("secret"),
            "{said}"
        );
        let missing = of(|options| options.creds = Some("/nowhere/user.creds".into()));
        assert!(refused(&missing).await.contains("/nowhere/user.creds"));
        let Err(said) = of_creds("nothing", Path::new("a.creds")) else {
            panic!("there is no JWT");
        };
        assert_eq!(said.to_string(), "read nats.creds a.creds: it holds no JWT");
    }
}
