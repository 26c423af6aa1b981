//! What is counted and measured, under the names that Prometheus knows. All names stand here.
//!
//! Base units, bounded labels, no label for subjects or tenants. Gauges about the slot are set by
//! every copy, leader or not: use `max by (slot)`.

mod process;

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry};

use self::process::Process;

/// Seconds since 1970, or a size that may be absent.
type Number = Gauge<f64, AtomicU64>;

/// The metrics of this process.
#[derive(Debug)]
pub struct Metrics {
    /// `state`, one of a fixed set.
    pub state: Family<StateLabel, Gauge>,
    /// Whether this copy holds the slot.
    pub leader: Gauge,
    /// How often this copy began or ceased to lead.
    pub leader_transitions: Counter,
    /// Commits that were read.
    pub transactions_decoded: Counter,
    /// Rows that were read.
    pub events_decoded: Counter,
    /// Events that were stored and acknowledged.
    pub events_published: Counter,
    /// Events that were found in the stream, after a restart or a break.
    pub events_known: Counter,
    /// Events that the record knew, after a restart.
    pub events_recorded: Counter,
    /// Events that were sent although they may have been stored before.
    pub events_uncertain: Counter,
    /// Whether what is settled is recorded before it is confirmed.
    pub record_kept: Gauge,
    /// How much of the log was confirmed whose events the stream may lack.
    pub slot_gap_bytes: Gauge,
    /// Events that cannot be published.
    pub events_dead_lettered: Counter,
    /// Events that the server keeps until they are due.
    pub events_delayed: Counter,
    /// Bytes of their bodies.
    pub decoded_bytes: Counter,
    /// Events with the sink.
    pub events_in_flight: Gauge,
    /// Their bytes.
    pub in_flight_bytes: Gauge,
    /// WAL whose events are stored and held back.
    pub held_wal_bytes: Gauge,
    /// Confirmed events that the stream has lost.
    pub gap_events: Counter,
    /// From commit to the acknowledgement of a transaction's last event, by two clocks.
    pub commit_to_ack: Histogram,
    /// When the oldest transaction that is not stored was committed; 0: there is none.
    pub oldest_unpublished: Number,
    /// When an event was last stored.
    pub last_published: Number,
    /// When Postgres last sent anything.
    pub last_wal_message: Number,
    /// Whether events get through to NATS; from the first attempt of a leader on.
    pub nats_connected: Gauge,
    /// How often they ceased to.
    pub nats_disconnects: Counter,
    /// How often leading or getting ready for it failed.
    pub retries: Counter,
    /// When old rows were last seen to, as a leader.
    pub retention_last_success: Number,
    /// How often that failed.
    pub retention_failures: Counter,
    /// Rows of `outbox.events` for whose day there was no partition.
    pub default_partition_rows: Gauge,
    /// The slot, as the server shows it.
    pub slot: SlotMetrics,
}

/// The gauges about the slot, each with its name as label.
#[derive(Debug, Default)]
pub struct SlotMetrics {
    /// Whether somebody streams from it.
    pub active: Family<SlotLabel, Gauge>,
    /// Written and not confirmed.
    pub lag_bytes: Family<SlotLabel, Gauge>,
    /// What the server keeps for it.
    pub retained_wal_bytes: Family<SlotLabel, Gauge>,
    /// What may still be written before it may be lost; absent without a limit.
    pub safe_wal_bytes: Family<SlotLabel, Gauge>,
    /// For how long something has waited to be confirmed.
    pub lag: Family<SlotLabel, Number>,
    /// Confirmed, and kept for transactions that are still open.
    pub pinned_wal_bytes: Family<SlotLabel, Gauge>,
    /// Since when nobody streams from it; absent while somebody does, and before 17.
    pub inactive_since: Family<SlotLabel, Number>,
    /// Why it was invalidated, one of a fixed set.
    pub invalidated: Family<ReasonLabel, Gauge>,
    /// Transactions that the server wrote to disk to decode them.
    pub spill_transactions: Family<SlotLabel, Counter>,
    /// Their bytes.
    pub spill_bytes: Family<SlotLabel, Counter>,
    /// Transactions that were sent before they were committed.
    pub stream_transactions: Family<SlotLabel, Counter>,
    /// Their bytes.
    pub stream_bytes: Family<SlotLabel, Counter>,
    /// `wal_status`, one of a fixed set.
    pub wal_status: Family<WalStatusLabel, Gauge>,
    /// When it was last read.
    pub last_poll: Family<SlotLabel, Number>,
    /// How often reading it failed.
    pub poll_failures: Family<SlotLabel, Counter>,
}

/// Which state.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct StateLabel {
    /// Its name.
    pub state: &'static str,
}

/// Which slot.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct SlotLabel {
    /// Its name.
    pub slot: String,
}

/// Which slot and which `wal_status`.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct WalStatusLabel {
    /// The slot's name.
    pub slot: String,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub status: &'static str,
}

/// Which slot and why it was invalidated.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ReasonLabel {
    /// The slot's name.
    pub slot: String,
    /// As in `pg_replication_slots.invalidation_reason`.
    pub reason: &'static str,
}

/// 0.25 ms to 60 s: from what a quiet server does to where an alarm has long gone off.
const LATENCY_BUCKETS: [f64; 15] = [
    0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0,
    60.0,
];

impl Default for Metrics {
    fn default() -> Self {
        Self {
            state: Family::default(),
            leader: Gauge::default(),
            leader_transitions: Counter::default(),
            transactions_decoded: Counter::default(),
            events_decoded: Counter::default(),
            events_published: Counter::default(),
            events_known: Counter::default(),
            events_recorded: Counter::default(),
            events_uncertain: Counter::default(),
            record_kept: Gauge::default(),
            slot_gap_bytes: Gauge::default(),
            events_dead_lettered: Counter::default(),
            events_delayed: Counter::default(),
            decoded_bytes: Counter::default(),
            events_in_flight: Gauge::default(),
            in_flight_bytes: Gauge::default(),
            held_wal_bytes: Gauge::default(),
            gap_events: Counter::default(),
            commit_to_ack: Histogram::new(LATENCY_BUCKETS),
            oldest_unpublished: Number::default(),
            last_published: Number::default(),
            last_wal_message: Number::default(),
            nats_connected: Gauge::default(),
            nats_disconnects: Counter::default(),
            retries: Counter::default(),
            retention_last_success: Number::default(),
            retention_failures: Counter::default(),
            default_partition_rows: Gauge::default(),
            slot: SlotMetrics::default(),
        }
    }
}

impl Metrics {
    /// Nothing is with the sink any more: what was is read again, by whoever leads.
    pub fn end_of_term(&self) {
        self.events_in_flight.set(0);
        self.in_flight_bytes.set(0);
        self.held_wal_bytes.set(0);
        self.oldest_unpublished.set(0.0);
        self.nats_connected.set(0);
        self.record_kept.set(0);
        self.slot_gap_bytes.set(0);
    }

    /// Gives each its name and its line of help.
    pub fn register(&self, registry: &mut Registry) {
        let version = vec![("version", env!("CARGO_PKG_VERSION"))];
        registry.register("outjet_build", "The version", Info::new(version));
        self.register_role(registry);
        self.register_events(registry);
        self.slot.register(registry);
        registry.register_collector(Box::new(Process));
    }

    fn register_role(&self, to: &mut Registry) {
        add(to, "state", "1 for the state it is in", &self.state);
        add(to, "leader", "1 if this copy holds the slot", &self.leader);
        let help = "Times this copy began or ceased to lead";
        add(to, "leader_transitions", help, &self.leader_transitions);
        let help = "Times leading, or getting ready for it, failed and was tried again";
        add(to, "retries", help, &self.retries);
        let help = "1 if events get through to NATS";
        add(to, "nats_connected", help, &self.nats_connected);
        let help = "Times events ceased to get through to NATS";
        add(to, "nats_disconnects", help, &self.nats_disconnects);
        let help = "When old rows and partitions were last seen to by this copy";
        let name = "retention_last_success_timestamp_seconds";
        add(to, name, help, &self.retention_last_success);
        let help = "Times seeing to old rows and partitions failed";
        add(to, "retention_failures", help, &self.retention_failures);
        let help = "Rows of outbox.events in the default partition, about";
        let rows = &self.default_partition_rows;
        add(to, "default_partition_rows", help, rows);
    }

    fn register_events(&self, to: &mut Registry) {
        let help = "Commits read from the slot";
        add(to, "transactions_decoded", help, &self.transactions_decoded);
        let help = "Outbox rows read from the slot";
        add(to, "events_decoded", help, &self.events_decoded);
        let help = "Events stored and acknowledged";
        add(to, "events_published", help, &self.events_published);
        let help = "Events found in the stream when they were sent again";
        add(to, "events_known", help, &self.events_known);
        let help = "Events sent again that the record knew to be settled";
        add(to, "events_recorded", help, &self.events_recorded);
        let help = "Events sent although they may have been stored before: their messages vanished";
        add(to, "events_uncertain", help, &self.events_uncertain);
        let help = "1 if what is settled is recorded before it is confirmed, while leading";
        add(to, "record_kept", help, &self.record_kept);
        let help = "WAL that was confirmed and whose events the stream may lack";
        add(to, "slot_gap_bytes", help, &self.slot_gap_bytes);
        let help = "Events stored among the dead letters";
        add(to, "events_dead_lettered", help, &self.events_dead_lettered);
        let help = "Events that the server keeps until they are due";
        add(to, "events_delayed", help, &self.events_delayed);
        add(
            to,
            "decoded_bytes",
            "Bytes of the bodies of those rows",
            &self.decoded_bytes,
        );
        let help = "Events handed to the sink and not settled";
        add(to, "events_in_flight", help, &self.events_in_flight);
        let help = "Bytes of events handed to the sink and not settled";
        add(to, "in_flight_bytes", help, &self.in_flight_bytes);
        let help = "WAL whose events are stored and held back (stream.hold)";
        add(to, "held_wal_bytes", help, &self.held_wal_bytes);
        let help = "Events that were confirmed and then lost by the stream, about";
        add(to, "gap_events", help, &self.gap_events);
        let help = "From a commit to the acknowledgement of its last event, by two clocks";
        add(to, "commit_to_ack_seconds", help, &self.commit_to_ack);
        let help = "Commit time of the oldest transaction that is not stored; 0: none";
        let name = "oldest_unpublished_timestamp_seconds";
        add(to, name, help, &self.oldest_unpublished);
        let help = "When an event was last stored";
        add(
            to,
            "last_published_timestamp_seconds",
            help,
            &self.last_published,
        );
        let help = "When Postgres last sent anything";
        add(
            to,
            "last_wal_message_timestamp_seconds",
            help,
            &self.last_wal_message,
        );
    }
}

impl SlotMetrics {
    fn register(&self, to: &mut Registry) {
        add(
            to,
            "slot_active",
            "1 if somebody streams from the slot",
            &self.active,
        );
        add(
            to,
            "slot_lag_bytes",
            "WAL written and not confirmed",
            &self.lag_bytes,
        );
        let help = "WAL that the server keeps for the slot";
        add(
            to,
            "slot_retained_wal_bytes",
            help,
            &self.retained_wal_bytes,
        );
        let help = "WAL that may be written before the slot may be lost; absent without a limit";
        add(to, "slot_safe_wal_bytes", help, &self.safe_wal_bytes);
        let help = "For how long something has waited to be confirmed, as this copy has seen it";
        add(to, "slot_lag_seconds", help, &self.lag);
        let help = "WAL that is confirmed and kept for transactions that are still open";
        add(to, "slot_pinned_wal_bytes", help, &self.pinned_wal_bytes);
        let help = "Since when nobody streams from the slot; Postgres 17 and newer";
        add(
            to,
            "slot_inactive_since_timestamp_seconds",
            help,
            &self.inactive_since,
        );
        let help = "1 for the reason why the slot was invalidated";
        add(to, "slot_invalidated", help, &self.invalidated);
        self.register_decoding(to);
        let help = "1 for the wal_status that the slot has";
        add(to, "slot_wal_status", help, &self.wal_status);
        let help = "When the slot was last looked at";
        add(
            to,
            "slot_last_poll_timestamp_seconds",
            help,
            &self.last_poll,
        );
        let help = "Times looking at the slot failed";
        add(to, "slot_poll_failures", help, &self.poll_failures);
    }
}

impl SlotMetrics {
    fn register_decoding(&self, to: &mut Registry) {
        let help = "Transactions that Postgres wrote to disk to decode them";
        add(
            to,
            "slot_spill_transactions",
            help,
            &self.spill_transactions,
        );
        let help = "Bytes of transactions that Postgres wrote to disk to decode them";
        add(to, "slot_spill_bytes", help, &self.spill_bytes);
        let help = "Transactions that Postgres sent before they were committed";
        add(
            to,
            "slot_stream_transactions",
            help,
            &self.stream_transactions,
        );
        let help = "Bytes of transactions that Postgres sent before they were committed";
        add(to, "slot_stream_bytes", help, &self.stream_bytes);
    }
}

/// A counter gets `_total` when it is written.
fn add<M: Metric + Clone>(to: &mut Registry, name: &str, help: &str, metric: &M) {
    to.register(format!("outjet_{name}"), help, metric.clone());
}
