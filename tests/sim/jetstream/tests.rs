//! The model, asked by outjet's own client over a network in memory.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use outjet::nats::{Connection, Options};
use outjet::net::Network;

use super::{Nats, VERSIONS};
use crate::net::{Net, Weather};
use crate::random::Random;

fn net(nats: &Nats) -> (Net, Options) {
    let address: SocketAddr = "10.0.0.2:4222".parse().expect("an address");
    let weather = Weather {
        delay_max: Duration::from_millis(5),
        bytes_max: 100,
    };
    let net = Net::new(Random::new(1), weather);
    let server = nats.clone();
    net.serve(
        address,
        Box::new(move |end| Some(Box::pin(server.clone().serve(end)))),
    );
    let options = Options {
        servers: vec![address.to_string()],
        entered: Arc::default(),
        name: "sim".to_owned(),
        user: None,
        password: None,
        token: None,
        nkey: None,
        creds: None,
        tls_ca: None,
        tls_client: None,
        tls_first: false,
        connect_timeout: Duration::from_secs(1),
        inbox_prefix: None,
        domain: None,
        network: Network::of(net.seat(0)),
    };
    (net, options)
}

async fn reply(connection: &mut Connection) -> String {
    loop {
        if let Some(reply) = connection.next_reply() {
            return String::from_utf8_lossy(reply.body).into_owned();
        }
        connection.ready().await.expect("a reply");
    }
}

#[tokio::test(start_paused = true)]
async fn messages_are_stored_where_they_are_expected() {
    let nats = Nats::new(VERSIONS[2]);
    let (_net, options) = net(&nats);
    let mut connection = Connection::open(&options).await.expect("connected");
    let create = br#"{"name":"S","subjects":["a.>"]}"#;
    connection.publish("$JS.API.STREAM.CREATE.S", Some(1), create);
    assert!(reply(&mut connection).await.contains("\"last_seq\":0"));
    let mut publish = |lines: &str| {
        let mut draft = connection.message("a.b", Some(2));
        draft.lines(lines.as_bytes());
        draft.send(b"x");
    };
    publish("Nats-Msg-Id: i\r\nNats-Expected-Last-Sequence: 0\r\n");
    publish("Nats-Msg-Id: i\r\nNats-Expected-Last-Sequence: 0\r\n");
    publish("Nats-Msg-Id: i\r\n");
    let said = [
        reply(&mut connection).await,
        reply(&mut connection).await,
        reply(&mut connection).await,
    ];
    assert_eq!(said[0], r#"{"stream":"S","seq":1}"#);
    assert!(said[1].contains("wrong last sequence: 1"), "{}", said[1]);
    assert_eq!(said[2], r#"{"stream":"S","seq":1,"duplicate": true}"#);
    assert!(nats.delete("S", 1));
    connection.publish("$JS.API.STREAM.MSG.GET.S", Some(3), br#"{"seq":1}"#);
    assert!(reply(&mut connection).await.contains("10037"));
    connection.publish("$JS.API.STREAM.INFO.S", Some(4), b"");
    assert!(reply(&mut connection).await.contains("\"first_seq\":2"));
}
