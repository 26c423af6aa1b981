//! Streams a Postgres outbox to NATS JetStream from the write-ahead log, in commit order, each
//! event once.
//!
//! The README says what it does and how it is operated. Here stands how it is built, and why
//! nothing is lost: read this, then [`lead::relay`], [`lead::window`], [`lead::watermark`],
//! [`sink`] and [`guard`].
//!
//! # The life of an event
//!
//! ```text
//! main → cli → command/run → term → relay
//!
//!      ┌→ pg/replication → pg/pgoutput → assemble → route → sink/jetstream ─┐
//! relay┤                                                                    │
//!      └←─────────────── window (events → acks → Confirmed) ←───────────────┘
//! ```
//!
//! An application inserts a row into the outbox and commits. Postgres's walsender decodes the
//! transaction after its commit and sends it as pgoutput messages. [`pg::replication`] cuts the
//! bytes into frames, [`pg::pgoutput`] reads a frame without copying, and [`event::assemble`] makes
//! an [`event::Event`] of an inserted row: [`event::mapping`] says which column means what,
//! [`event::route`] makes the subject, [`event::format`](mod@event::format) the headers; the body
//! stays a slice of the frame.
//!
//! The event enters the [window](lead::window), goes through a bounded channel to the [`sink`], and
//! out to JetStream. When its acknowledgement has come, the sink reports it as settled; the window
//! then knows up to where everything is stored, and the next status update tells Postgres.
//!
//! # Why nothing is lost
//!
//! Postgres keeps the WAL from the slot's `confirmed_flush_lsn` on, and sends again what lies
//! behind it. So an event can be lost only by confirming an LSN too early. Six rules keep that from
//! happening; each is held in one place.
//!
//! 1. Only [`lead::window::Window`] makes a [`lead::window::Confirmed`], and a status update takes
//!    nothing else: acknowledging what is not stored does not compile.
//! 2. An event enters the window before it is handed to the sink, and leaves it only when the sink
//!    says that it is stored. The window is one queue: what confirms an LSN is that everything
//!    before it has left.
//! 3. What is confirmed for a transaction is the end of its commit record (`Commit.end_lsn`), once
//!    all its events have left. A keepalive confirms what it says only behind everything that was
//!    sent before it; an idle outbox on a busy server needs no more to let WAL go.
//! 4. The sink settles an event on its own acknowledgement alone, from the JetStream domain of the
//!    stream and with the stream sequence that was predicted for it. One from another domain is
//!    passed over: the stream's own may still come. Every other answer, or none, means that the
//!    outcome is unknown: the connection is given up, and the next one asks the stream.
//! 5. What is not understood ends the term. Nothing is passed over for want of understanding:
//!    no unknown tag, no missing column, no subject that the stream does not cover.
//! 6. A status update carries no LSN above what the record beside the stream names
//!    ([`lead::record`]). So a slot that stands above it was moved by somebody else, which is
//!    reported, and not taken for progress.
//!
//! # Why nothing is there twice, or out of order
//!
//! Postgres does send again what was stored: whatever was in flight when outjet or Postgres went
//! down. And a connection to NATS that broke may still deliver what was sent on it.
//!
//! - Every message expects the stream sequence that its predecessor made
//!   (`Nats-Expected-Last-Sequence`). What comes late or out of turn is refused by the server, with
//!   everything behind it. A header of a row that could hide this one is a reason for a rejection
//!   ([`event::header_is_sound`]).
//! - What was settled is known from the record that the last leader kept beside the stream
//!   ([`lead::watermark`]): up to a position, with its event's id. The position is the LSN of the
//!   commit record and the number of the row or message in its transaction, counting all that the
//!   slot sends.
//! - Beyond it, before anything is sent in a new term or on a new connection, [`guard`] looks for
//!   what is to be sent in the stream, by position and id. Where a message has vanished that may
//!   have been the event, that is uncertain: it goes out again, and is counted.
//! - The slot is the lock. Two processes cannot stream it at the same time, and one that lost it
//!   without noticing meets the chain.
//!
//! A stream that others write, too (`stream.shared`), has no chain. There the guard and the slot
//! are what they are; what comes late is kept out by the server's memory of ids, and what is
//! refused may be overtaken by what was under way with it (`docs/shared.md`).
//!
//! # When the broker forgets
//!
//! JetStream acknowledges before it writes to disk. With `stream.hold` what is settled leaves the
//! [window](lead::window), which still does not confirm it: not before the sink has found it at its
//! place once more, old enough by the stream's own clock. A stream that ends before its last known
//! sequence, or that was made anew, ends the term: the slot sends again what is not confirmed, the
//! guard skips what is there, and what was confirmed before is told as a gap.
//!
//! # Where trouble ends
//!
//! Trouble with NATS ends an *epoch*: one connection with its chain. Trouble with Postgres, or one
//! that a person must mend, ends the *term*: one stint of leading ([`lead::term`]). Both begin
//! again through the same guard; there is no third way to recover. A term that ended is tried
//! again, or stood by, or halted, as its [`error::Failure`] says.
//!
//! # Who may know what
//!
//! Held by a test (`tests/it/tidy.rs`):
//!
//! - Pure, without async, clock or socket: [`lsn`], [`event`], [`guard`], [`lead::window`],
//!   [`lead::watermark`], [`pg::pgoutput`], [`nats::wire`].
//! - [`event::assemble`] alone knows both pgoutput and events. A [`sink`] knows no LSN, [`pg`] no
//!   event, [`nats`] no sink.
//! - [`config`] knows every subsystem's options and builds them; none of them imports it.
//! - [`producer`] is for applications that write events, and knows nothing of the rest; the feature
//!   of its name is all that they need.
//! - [`preflight`] judges facts that [`pg::catalog`] has read; [`command`] prints, [`lead::term`]
//!   acts.

#[cfg(feature = "streamer")]
pub mod backoff;
#[cfg(feature = "streamer")]
pub mod cli;
#[cfg(feature = "streamer")]
pub mod command;
#[cfg(feature = "streamer")]
pub mod config;
#[cfg(feature = "streamer")]
pub mod error;
#[cfg(feature = "streamer")]
pub mod event;
#[cfg(feature = "streamer")]
pub mod fault;
#[cfg(all(feature = "streamer", any(test, fuzzing)))]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "streamer")]
pub mod guard;
#[cfg(feature = "streamer")]
pub mod lead;
#[cfg(feature = "streamer")]
pub mod lsn;
#[cfg(feature = "streamer")]
pub mod nats;
#[cfg(feature = "streamer")]
pub mod net;
#[cfg(feature = "streamer")]
pub mod pg;
#[cfg(feature = "streamer")]
pub mod preflight;
#[cfg(feature = "producer")]
pub mod producer;
#[cfg(feature = "streamer")]
pub mod sink;
#[cfg(feature = "streamer")]
pub mod tls;
#[cfg(feature = "streamer")]
pub mod watch;
