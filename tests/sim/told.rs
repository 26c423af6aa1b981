//! What an operator is told in the middle of a start.

use std::time::Duration;

use outjet::watch::vitals::State;
use tokio::task::LocalSet;
use tokio::time::sleep;

use crate::instance::Instance;
use crate::jetstream::{self, Nats, Version};
use crate::net::Net;
use crate::postgres::{self, Postgres, Row};
use crate::random::Random;
use crate::scene::{Scene, serve, weather};

/// Who has failed at its first row has given its slot back by the time it is looked at.
#[tokio::test(start_paused = true)]
async fn stream_that_ends_at_its_first_row_says_why() {
    let mut random = Random::new(1);
    let postgres = Postgres::new(postgres::Options::new(17));
    let nats = Nats::new(jetstream::Options::new(Version::V2_15));
    let net = Net::new(random.fork(), weather(&mut random));
    serve(&net, &postgres, &nats);
    postgres.set_publication(false);
    let xid = postgres.begin().expect("it is up");
    postgres.insert(xid, Row::new("00000000-0000-0000-0000-000000000001", "{}"));
    postgres.commit(xid);
    postgres.set_publication(true);
    let scene = Scene::new(&mut random, Version::V2_15);
    let config = scene.config(&mut random);
    let run = async move {
        let instance = Instance::start(&net, 0, &config);
        let mut told = Vec::new();
        for _ in 0..100 {
            sleep(Duration::from_millis(200)).await;
            assert_ne!(instance.state(), State::Streaming);
            told.push(instance.problem());
        }
        told.retain(|words| !words.is_empty());
        told.dedup();
        let words = told.last().expect("it says something");
        assert!(words.contains("42704"), "{told:?}");
        let vague = told.iter().find(|words| words.contains("a moment ago"));
        assert_eq!(vague, None);
    };
    LocalSet::new().run_until(run).await;
}
