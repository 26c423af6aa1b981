//! Several nats-servers that are one JetStream.

use async_nats::jetstream::{self, stream};
use std::time::Duration;

use super::nats::{self, Nats};
use super::port::Port;
use super::wait::{Wait, until};

/// Elections take seconds, on a busy machine more of them; with 2.10 the nodes' statistics, every
/// 10 s, tell that there are nodes.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// Nodes of 2.10 that connect to each other at the same moment may stay strangers for minutes ("no
/// suitable peers for placement"), which is not what anybody tests here: then others are started.
const TOGETHER_WITHIN: Duration = Duration::from_secs(30);

/// Servers with routes to each other; `n0`, `n1` and so on are their names.
pub(crate) struct Cluster {
    /// The servers.
    pub(crate) nodes: Vec<Nats>,
    _routes: Vec<Port>,
}

impl Cluster {
    /// Starts them, and waits until they can hold a stream on each of them.
    pub(crate) async fn start(size: usize, version: Option<&str>) -> Self {
        let nats = Nats::builder();
        let nats = version.into_iter().fold(nats, nats::Builder::version);
        Self::of(size, &nats).await
    }

    /// Of servers with settings of the caller.
    pub(crate) async fn of(size: usize, nats: &nats::Builder) -> Self {
        let cluster = Box::pin(Self::of_strangers(size, nats)).await;
        let together = tokio::time::timeout(TOGETHER_WITHIN, cluster.until_ready());
        if together.await.is_ok() {
            return cluster;
        }
        drop(cluster);
        let cluster = Box::pin(Self::of_strangers(size, nats)).await;
        cluster.until_ready().await;
        cluster
    }

    async fn of_strangers(size: usize, nats: &nats::Builder) -> Self {
        let ports: Vec<Port> = (0..size).map(|_| Port::free()).collect();
        let route = |port: &Port| format!("\"nats://127.0.0.1:{}\"", port.number());
        let routes = ports.iter().map(route).collect::<Vec<_>>().join(", ");
        let starts = ports.iter().enumerate().map(|(node, port)| {
            let lines = format!(
                "server_name: n{node}\n\
                 cluster {{name: C, pool_size: -1, listen: \"127.0.0.1:{}\",\n\
                 routes: [{routes}]}}",
                port.number()
            );
            nats.clone().config(&lines).start()
        });
        let nodes = futures_util::future::join_all(starts).await;
        Self {
            nodes,
            _routes: ports,
        }
    }

    /// The addresses of all of them, as outjet takes them.
    pub(crate) fn url(&self) -> String {
        let urls: Vec<String> = self.nodes.iter().map(Nats::url).collect();
        urls.join(",")
    }

    /// A client of whichever runs, which stays with it.
    pub(crate) async fn jetstream(&self) -> jetstream::Context {
        let urls: Vec<String> = self.nodes.iter().map(Nats::url).collect();
        let client = async_nats::connect(urls).await;
        jetstream::new(client.expect("a node that runs"))
    }

    /// The node that leads this stream.
    pub(crate) async fn leader(&mut self, stream: &str) -> &mut Nats {
        let at = self.leader_index(stream).await;
        &mut self.nodes[at]
    }

    /// A node that only follows.
    pub(crate) async fn follower(&mut self, stream: &str) -> &mut Nats {
        let at = (self.leader_index(stream).await + 1) % self.nodes.len();
        &mut self.nodes[at]
    }

    async fn leader_index(&self, stream: &str) -> usize {
        let jetstream = self.jetstream().await;
        until("the stream has a leader", READY_WITHIN, async || {
            let found = jetstream.get_stream(stream).await;
            let leader = found.map(|found| found.cached_info().cluster.clone());
            let name = leader
                .as_ref()
                .ok()
                .and_then(|c| c.as_ref()?.leader.clone());
            let index = name.and_then(|name| name.strip_prefix('n')?.parse().ok());
            match index {
                Some(index) => Wait::Ready(index),
                None => Wait::NotYet(format!("{leader:?}")),
            }
        })
        .await
    }

    /// Having a leader is not enough: it must know of all nodes.
    async fn until_ready(&self) {
        let jetstream = self.jetstream().await;
        until("a stream on every node", READY_WITHIN, async || {
            let probe = stream::Config {
                name: "PROBE".to_owned(),
                num_replicas: self.nodes.len(),
                ..Default::default()
            };
            let created = jetstream.create_stream(probe).await;
            Wait::ready_if(created.is_ok(), created.err())
        })
        .await;
        jetstream.delete_stream("PROBE").await.expect("deleted");
    }
}
