//! One connection: what a client says, and what it is told.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::sync::Notify;

use super::message::{Published, Said, parse};
use super::{Client, Nats, Version};

pub(super) async fn serve(nats: Nats, stream: impl AsyncRead + AsyncWrite + Unpin) {
    let wake = Arc::new(Notify::new());
    let connection = Connection::open(&nats, wake.clone());
    let (mut reader, mut writer) = split(stream);
    let (mut input, mut output) = (Vec::new(), Vec::new());
    while connection.is_open() {
        connection.take_output(&mut output);
        tokio::select! {
            biased;
            // Who does not read is not heard, either.
            written = writer.write(&output), if !output.is_empty() => match written {
                Ok(written) if written > 0 => drop(output.drain(..written)),
                _ => return,
            },
            read = reader.read_buf(&mut input) => {
                if !matches!(read, Ok(bytes) if bytes > 0) {
                    return;
                }
                let heard = connection.hear(&input);
                input.drain(..heard);
            }
            () = wake.notified() => {}
        }
    }
}

/// Ends with the future that serves it.
struct Connection<'a> {
    nats: &'a Nats,
    number: u64,
    process: u64,
}

impl<'a> Connection<'a> {
    fn open(nats: &'a Nats, wake: Arc<Notify>) -> Self {
        let mut state = nats.state();
        state.connected += 1;
        let (number, process) = (state.connected, state.process);
        let client = Client {
            subscriptions: std::collections::BTreeMap::new(),
            output: info(nats.shared.version, (number, process)).into_bytes(),
            wake,
        };
        state.clients.insert(number, client);
        Self {
            nats,
            number,
            process,
        }
    }

    fn is_open(&self) -> bool {
        self.nats.state().process == self.process
    }

    fn take_output(&self, output: &mut Vec<u8>) {
        let mut state = self.nats.state();
        if let Some(client) = state.clients.get_mut(&self.number) {
            output.append(&mut client.output);
        }
    }

    /// Does what is said, as far as it is all there, and returns how much that was.
    fn hear(&self, input: &[u8]) -> usize {
        let mut heard = 0;
        while let Some((said, bytes)) = parse(&input[heard..]) {
            self.take(said);
            heard += bytes;
        }
        heard
    }

    fn take(&self, said: Said<'_>) {
        let mut state = self.nats.state();
        let client = state
            .clients
            .get_mut(&self.number)
            .expect("as long as it is served");
        match said {
            Said::Connect | Said::Pong => {}
            Said::Ping => client.output.extend_from_slice(b"PONG\r\n"),
            Said::Subscribe { pattern, number } => {
                client.subscriptions.insert(number, pattern.to_owned());
            }
            Said::Unsubscribe(number) => {
                client.subscriptions.remove(&number);
            }
            Said::Publish {
                subject,
                reply,
                headers,
                body,
            } => {
                drop(state);
                let message = Published {
                    subject,
                    headers,
                    body,
                    by: Some(self.number),
                };
                self.publish(&message, reply);
            }
        }
    }

    fn publish(&self, message: &Published<'_>, reply: Option<&str>) {
        let shared = &self.nats.shared;
        let now = shared.clock.now();
        let mut state = self.nats.state();
        let api = message.subject.strip_prefix("$JS.API.");
        let answer = match api.filter(|request| !request.starts_with("$KV.")) {
            Some(request) => state.answer(request, message.body, now),
            None => {
                let subject = api.unwrap_or(message.subject);
                let message = Published {
                    subject,
                    ..*message
                };
                state.store(&message, (shared.version, now))
            }
        };
        let delivered = state.deliver(message.subject, message.headers, message.body);
        match (reply, answer) {
            (Some(reply), Some(answer)) => drop(state.deliver(reply, b"", answer.as_bytes())),
            (Some(reply), None) if !delivered => {
                state.deliver(reply, b"NATS/1.0 503\r\n\r\n", b"");
            }
            _ => {}
        }
    }
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        let mut state = self.nats.state();
        state.clients.remove(&self.number);
    }
}

fn info((major, minor, patch): Version, (client, process): (u64, u64)) -> String {
    format!(
        "INFO {{\"server_id\":\"NSIM{process}\",\"server_name\":\"sim\",\
         \"version\":\"{major}.{minor}.{patch}\",\"proto\":1,\"headers\":true,\
         \"max_payload\":1048576,\"jetstream\":true,\"client_id\":{client}}}\r\n"
    )
}
