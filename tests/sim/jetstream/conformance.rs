//! The rules of the model, played on the real server and on the model: what they say must be the
//! same, but for times.

use futures_util::{StreamExt, stream};
use tokio::io::{DuplexStream, duplex};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::task::JoinSet;

use super::rules::{Rule, Setting, Step, rules};
use super::talk::Talk;
use super::{Nats, Options, Version};
use crate::harness::nats::Nats as Server;

/// What rules are played on.
trait Broker {
    type Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin;

    async fn connect(&mut self) -> Talk<Self::Stream>;
    async fn restart(&mut self);
}

impl Broker for Server {
    type Stream = TcpStream;

    async fn connect(&mut self) -> Talk<TcpStream> {
        let stream = TcpStream::connect(("127.0.0.1", self.port())).await;
        Talk::open(stream.expect("the server listens")).await
    }

    async fn restart(&mut self) {
        self.kill().await;
        self.start_again().await;
    }
}

struct Model {
    nats: Nats,
    served: JoinSet<()>,
}

impl Broker for Model {
    type Stream = DuplexStream;

    async fn connect(&mut self) -> Talk<DuplexStream> {
        let (ours, theirs) = duplex(256 * 1024);
        self.served.spawn(self.nats.clone().serve(theirs));
        Talk::open(ours).await
    }

    async fn restart(&mut self) {
        self.nats.restart();
    }
}

/// What was said, step by step.
async fn play<B: Broker>(broker: &mut B, rule: &Rule) -> Vec<(String, String)> {
    let mut talk = broker.connect().await;
    let mut said = Vec::new();
    for step in &rule.steps {
        match step {
            Step::Ask(subject, lines, body) => {
                let answer = talk.ask(subject, lines, body).await;
                let asked = format!("{subject} {lines:?} {}", String::from_utf8_lossy(body));
                said.push((format!("{asked:.200}"), without_times(&answer)));
            }
            Step::Say(said) => talk.say(said.as_bytes()).await,
            Step::Wait(time) => tokio::time::sleep(*time).await,
            Step::Restart => {
                broker.restart().await;
                talk = broker.connect().await;
            }
            Step::Reconnect => talk = broker.connect().await,
        }
    }
    said
}

/// Times are those of the clock; what has none is said in one way or another.
fn without_times(said: &str) -> String {
    let mut parts = said.split('"');
    let mut masked = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let time = part.ends_with('Z') && part.as_bytes().get(10) == Some(&b'T');
        masked.push('"');
        masked.push_str(if time { "TIME" } else { part });
    }
    masked
}

/// Where two answers begin to differ, with a little of what is before.
fn difference<'a>(real: &'a str, model: &'a str) -> (&'a str, &'a str) {
    const BEFORE: usize = 40;
    let same = real.bytes().zip(model.bytes()).take_while(|(a, b)| a == b);
    let mut from = same.count().saturating_sub(BEFORE);
    while !(real.is_char_boundary(from) && model.is_char_boundary(from)) {
        from -= 1;
    }
    (&real[from..], &model[from..])
}

fn model(version: Version, setting: Setting) -> Nats {
    let mut options = Options::new(version);
    if setting == Setting::Domain {
        options.domain = Some("hub".to_owned());
    }
    let nats = Nats::new(options);
    if setting == Setting::Denied {
        nats.deny(&["s.no"], &["no.>"]);
    }
    nats
}

/// A real server, set so.
async fn server(of_server: &str, setting: Setting) -> Server {
    let server = Server::builder()
        .version(of_server)
        .config("server_name: n1");
    let server = match setting {
        Setting::Usual => server,
        Setting::Domain => server.jetstream("domain: hub"),
        Setting::Denied => server.config(
            "accounts { A { jetstream: enabled, users: [ { user: a, password: a, permissions: { \
             publish: { deny: \"s.no\" }, subscribe: { deny: \"no.>\" } } } ] } }\n\
             no_auth_user: a",
        ),
    };
    server.start().await
}

fn on_model(version: Version, rule: &Rule) -> Vec<(String, String)> {
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    runtime.expect("a runtime").block_on(async {
        let mut model = Model {
            nats: model(version, rule.setting),
            served: JoinSet::new(),
        };
        play(&mut model, rule).await
    })
}

/// Plays a rule on a server of its own, and on the model. What they say differently.
async fn compare_rule(version: Version, of_server: &str, rule: Rule) -> (usize, String) {
    let mut server = server(of_server, rule.setting).await;
    let real = play(&mut server, &rule).await;
    let name = rule.name;
    let model = std::thread::spawn(move || on_model(version, &rule));
    let model = model.join().expect("the model does not panic");
    let mut told = String::new();
    for ((asked, real), (_, model)) in real.iter().zip(&model) {
        if real != model {
            let (real, model) = difference(real, model);
            told.push_str(&format!(
                "\n{name}: {asked}\n  real  {real}\n  model {model}\n"
            ));
        }
    }
    (real.len(), told)
}

/// So many rules are played at once: most of the time each waits.
const AT_ONCE: usize = 8;

async fn compare(version: Version, of_server: &str) {
    let rules = rules(version).into_iter();
    let compared = rules.map(|rule| compare_rule(version, of_server, rule));
    let compared = stream::iter(compared).buffered(AT_ONCE);
    let (answers, differences): (Vec<usize>, Vec<String>) = compared.unzip().await;
    let differences = differences.concat();
    assert!(differences.is_empty(), "{version:?}: {differences}");
    let answers: usize = answers.iter().sum();
    assert!(answers > 100, "{answers} answers were compared");
}

#[tokio::test]
async fn model_says_what_nats_server_2_10_says() {
    compare(Version::V2_10, "2.10.26").await;
}

#[tokio::test]
async fn model_says_what_nats_server_2_15_says() {
    compare(Version::V2_15, "2.15.1").await;
}
