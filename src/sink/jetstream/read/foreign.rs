//! A connection of async-nats, for consumers, which our own client does not speak. It breaks once,
//! as ours do: what goes wrong first is kept, and is what everything ends with from then on.

use std::time::Duration;

use async_nats::jetstream::context::{Context, ContextBuilder};
use async_nats::{Client, ConnectOptions, Event};
use tokio::sync::watch;

use super::super::error::Error;
use super::super::options::NatsOptions;
use crate::error::chain;
use crate::nats::SignIn;

/// How often an idle connection is tried: a dead one is noticed after about two of these.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// A connection, until it breaks.
pub(super) struct Foreign {
    pub(super) client: Client,
    pub(super) context: Context,
    /// The first thing that went wrong.
    broken: watch::Receiver<Option<String>>,
}

impl Foreign {
    /// Connects. To be asked where our own client has just connected: what may be wrong with the
    /// options is not told apart.
    pub(super) async fn open(nats: &NatsOptions) -> Result<Self, Error> {
        let (trouble, broken) = watch::channel(None);
        let options = connect_options(nats).await?.event_callback(move |event| {
            let trouble = trouble.clone();
            async move { note(&trouble, &event) }
        });
        let connecting = options.connect(nats.servers.clone());
        let connected = tokio::time::timeout(nats.connect_timeout, connecting).await;
        let failed = |why: String| Error::Broken(format!("connect to NATS once more: {why}"));
        let connected = connected.map_err(|elapsed| failed(elapsed.to_string()))?;
        let client = connected.map_err(|error| failed(chain(&error)))?;
        let builder = ContextBuilder::new().timeout(nats.connect_timeout);
        let context = match &nats.domain {
            Some(domain) => builder.domain(domain).build(client.clone()),
            None => builder.build(client.clone()),
        };
        Ok(Self {
            client,
            context,
            broken,
        })
    }

    /// Does something with the connection, which may break meanwhile: the client would only wait.
    /// Cancel-safe if `work` is.
    pub(super) async fn unless_broken<T>(
        &self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let mut broken = self.broken.clone();
        tokio::select! {
            biased;
            why = until_broken(&mut broken) => Err(why),
            done = work => done,
        }
    }
}

async fn connect_options(nats: &NatsOptions) -> Result<ConnectOptions, Error> {
    let mut connect = ConnectOptions::new()
        .name(&nats.name)
        .connection_timeout(nats.connect_timeout)
        .ping_interval(PING_INTERVAL)
        // One round over the servers.
        .max_reconnects(nats.servers.len())
        .ignore_discovered_servers();
    if let Some(user) = &nats.user {
        let password = nats.password.clone().unwrap_or_default();
        connect = connect.user_and_password(user.clone(), password);
    } else {
        // The client reads no user information from URLs.
        connect = match nats.of_url() {
            Some(SignIn::User { user, password }) => connect.user_and_password(user, password),
            Some(SignIn::Token(token)) => connect.token(token),
            None => connect,
        };
    }
    if let Some(token) = &nats.token {
        connect = connect.token(token.clone());
    }
    if let Some(seed) = &nats.nkey {
        connect = connect.nkey(seed.clone());
    }
    if let Some(ca) = &nats.tls_ca {
        connect = connect.add_root_certificates(ca.clone()).require_tls(true);
    }
    if let Some((cert, key)) = &nats.tls_client {
        connect = connect
            .add_client_certificate(cert.clone(), key.clone())
            .require_tls(true);
    }
    if nats.tls_first {
        connect = connect.tls_first();
    }
    if let Some(prefix) = &nats.inbox_prefix {
        connect = connect.custom_inbox_prefix(prefix);
    }
    let Some(path) = &nats.creds else {
        return Ok(connect);
    };
    connect
        .credentials_file(path)
        .await
        .map_err(|error| Error::Unusable(format!("read nats.creds {}: {error}", path.display())))
}

/// Keeps the first trouble: what follows is its consequence.
fn note(trouble: &watch::Sender<Option<String>>, event: &Event) {
    let text = match event {
        Event::Connected => return,
        Event::Disconnected => "the connection was lost".to_owned(),
        Event::LameDuckMode => "the server is about to shut down".to_owned(),
        Event::Draining | Event::Closed => "the connection was closed".to_owned(),
        Event::SlowConsumer(_) => "messages were dropped".to_owned(),
        Event::ServerError(error) => format!("the server says: {error}"),
        Event::ClientError(error) => format!("the client says: {error}"),
    };
    trouble.send_if_modified(|first| {
        let news = first.is_none();
        if news {
            *first = Some(text);
        }
        news
    });
}

/// Waits for the first trouble. Cancel-safe, as `wait_for` is.
async fn until_broken(broken: &mut watch::Receiver<Option<String>>) -> Error {
    let said = match broken.wait_for(Option::is_some).await {
        Ok(said) => said.clone().unwrap_or_default(),
        Err(_) => "the connection was closed".to_owned(),
    };
    // A denied subscription or publish is answered on the connection, not on the inbox.
    if said.contains("ermissions Violation for Publish") {
        Error::PublishDenied(said)
    } else if said.contains("ermissions Violation") {
        Error::InboxDenied(said)
    } else {
        Error::Broken(said)
    }
}
