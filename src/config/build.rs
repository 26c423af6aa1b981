//! From the checked configuration to what each subsystem is told: the one place that knows both.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::check::TAKEN_OVER_WITHIN;
use super::{
    Column, Config, Format, Ingress, Manage, OnDelayed, OnOversize, OnReject, Published, Storage,
    Table, Transactions,
};
use crate::error::{Exit, Failure, Problem};
use crate::event::assemble;
use crate::event::format;
use crate::event::mapping::{self, ExtraColumn, Field, Inside, Mapping, Marker, Origin, Syntax};
use crate::event::route::{Route, RouteError, Template};
use crate::lead::retention::{self, Partitions};
use crate::lead::window::Limits;
use crate::lead::{record, relay};
use crate::net::Network;
use crate::pg::name::TableName;
use crate::pg::params::{Params, RootCert, TargetSessionAttrs};
use crate::preflight::{self, RequiredColumn, TableRequirement};
use crate::sink::jetstream;

impl Config {
    /// How to reach Postgres; `environment` holds the `PG*` variables.
    pub fn params(&self, environment: &BTreeMap<String, String>) -> Result<Params, Failure> {
        let postgres = &self.postgres;
        let url = postgres.url.as_ref().map_or("", |url| url.expose());
        let lookup = |name: &str| environment.get(name).cloned();
        let mut params = Params::parse(url, &lookup).map_err(|error| error.failure())?;
        if let Some(sslmode) = postgres.sslmode {
            params.sslmode = sslmode.word().parse().expect("both know libpq's words");
        }
        if let Some(path) = &postgres.sslrootcert {
            params.sslrootcert = Some(RootCert::from(path.clone()));
        }
        params.sslcert = postgres.sslcert.as_ref().map(Into::into).or(params.sslcert);
        params.sslkey = postgres.sslkey.as_ref().map(Into::into).or(params.sslkey);
        params.connect_timeout = postgres.connect_timeout.or(params.connect_timeout);
        // Among several hosts, only the primary has the slot.
        if params.hosts.len() > 1 && params.target_session_attrs == TargetSessionAttrs::Any {
            params.target_session_attrs = TargetSessionAttrs::ReadWrite;
        }
        Ok(params)
    }

    /// What must be there in Postgres.
    pub fn preflight_options(&self) -> preflight::Options {
        let tables = self.tables.iter().map(|table| {
            let mapping = mapping(table);
            TableRequirement {
                name: TableName::new(mapping.schema(), mapping.table()),
                columns: RequiredColumn::of(&mapping),
                expires: table.keep.is_some(),
            }
        });
        preflight::Options {
            slot: self.postgres.slot.clone(),
            publication: self.postgres.publication.clone(),
            tables: tables.collect(),
            prefixes: self.messages.prefixes.clone(),
            turns_partitions: self.turns_partitions(),
        }
    }

    /// How rows become events.
    pub fn assemble_options(&self, database: &str) -> Result<assemble::Options, Failure> {
        let publish = &self.publish;
        let subject = Template::parse(&publish.subject)
            .map_err(|error| unusable("publish.subject", &error))?;
        let routes = publish
            .routes
            .iter()
            .map(|route| Route::parse(&route.pattern, &route.to));
        let routes: Result<Vec<_>, _> = routes.collect();
        Ok(assemble::Options {
            tables: self.mappings(),
            prefixes: self.messages.prefixes.clone(),
            subject,
            routes: routes.map_err(|error| unusable("publish.routes", &error))?,
            format: match publish.format {
                Format::CloudEvents => format::Format::CloudEvents,
                Format::Minimal => format::Format::Minimal,
                Format::Structured => format::Format::Structured,
                Format::Envelope => format::Format::Envelope,
            },
            subject_prefix: publish.subject_prefix.clone(),
            source: publish.source.clone(),
            database: database.to_owned(),
            slot: self.postgres.slot.clone(),
        })
    }

    /// What the template and the routes make of rows, as a pattern: `events.>`. Values may hold
    /// dots, so that nothing is known behind the first of them.
    pub fn subject_pattern(&self) -> Result<String, Failure> {
        let (one, other) = (
            self.subject_of(|_| Some("x"))?,
            self.subject_of(|_| Some("y"))?,
        );
        if one == other {
            return Ok(one);
        }
        let tokens = one.split('.').zip(other.split('.'));
        let same = tokens.take_while(|(one, other)| one == other);
        let pattern: String = same.map(|(token, _)| format!("{token}.")).collect();
        Ok(pattern + ">")
    }

    /// What the template and the routes make of a row without a topic, by the names of its fields.
    pub fn subject_of<'a>(
        &self,
        value: impl Fn(&str) -> Option<&'a str>,
    ) -> Result<String, Failure> {
        let options = self.assemble_options("")?;
        let fields: Vec<_> = options.subject.fields().collect();
        let mut subject = String::new();
        options
            .subject
            .render(&mut subject, |number| value(fields[number]));
        let mut routes = options.routes.iter();
        let routed = routes.find_map(|route| route.apply(&subject));
        let subject = routed.unwrap_or(subject);
        Ok(match &options.subject_prefix {
            Some(prefix) => format!("{prefix}.{subject}"),
            None => subject,
        })
    }

    /// Where events go.
    pub fn sink_options(&self) -> jetstream::Options {
        let nats = &self.nats;
        let stream = self.stream_options();
        let buries = jetstream::Buries {
            oversize: match self.publish.on_oversize {
                Some(OnOversize::DeadLetter) => true,
                Some(OnOversize::Halt) => false,
                // What is too large even so.
                Some(OnOversize::ObjectStore) | None => self.buries_rejected(),
            },
            others: self.buries_rejected(),
        };
        let bucket = &self.publish.claim_check;
        let bodies = || stream.bodies(&bucket.bucket, bucket.max_age.unwrap_or(stream.max_age));
        jetstream::Options {
            nats: jetstream::NatsOptions {
                servers: nats.servers().map(str::to_owned).collect(),
                entered: Arc::default(),
                name: nats.name.clone(),
                user: nats.user.clone(),
                password: nats
                    .password
                    .as_ref()
                    .map(|secret| secret.expose().to_owned()),
                token: nats.token.as_ref().map(|secret| secret.expose().to_owned()),
                nkey: nats.nkey.as_ref().map(|secret| secret.expose().to_owned()),
                creds: nats.creds.clone(),
                tls_ca: nats.tls.ca.clone(),
                tls_client: nats.tls.cert.clone().zip(nats.tls.key.clone()),
                tls_first: nats.tls.first,
                connect_timeout: nats.connect_timeout,
                inbox_prefix: Some(nats.inbox_prefix.clone()),
                domain: nats.jetstream_domain.clone(),
                network: Network::default(),
            },
            dead_letters: (buries.oversize || buries.others).then(|| stream.dead_letters()),
            buries,
            bodies: (self.publish.on_oversize == Some(OnOversize::ObjectStore)).then(bodies),
            record: true,
            whose: record::whose,
            takes_over: false,
            read_to: None,
            delayed: (self.publish.delayed == OnDelayed::Schedule).then(|| stream.delayed()),
            stream,
            in_flight_max: self.publish.in_flight_max as usize,
            in_flight_bytes_max: self.publish.in_flight_bytes_max,
            ack_timeout: self.publish.ack_timeout,
            hold: self.stream.hold,
            give_up_after: None,
        }
    }

    /// How long ids must be remembered where messages may vanish.
    pub fn duplicate_window_min(&self) -> Duration {
        self.postgres.takeover_after + TAKEN_OVER_WITHIN
    }

    fn stream_options(&self) -> jetstream::StreamOptions {
        let stream = &self.stream;
        jetstream::StreamOptions {
            name: stream.name.clone(),
            subjects: stream.subjects.clone(),
            ingress: match stream.ingress {
                Ingress::Public => jetstream::Ingress::Public,
                Ingress::Private => jetstream::Ingress::Private,
            },
            shared: stream.shared,
            replicas: stream.replicas as usize,
            storage: match stream.storage {
                Storage::File => jetstream::Storage::File,
                Storage::Memory => jetstream::Storage::Memory,
            },
            create: stream.manage == Manage::Create,
            duplicate_window: stream.duplicate_window,
            max_age: stream.max_age.unwrap_or_default(),
            max_bytes: stream.max_bytes,
            atomic: self.is_atomic(),
            expires: true,
            schedules: false,
            objects: false,
        }
    }

    fn buries_rejected(&self) -> bool {
        self.publish.on_reject == OnReject::DeadLetter
    }

    /// How the relay keeps pace.
    pub fn relay_options(&self) -> relay::Options {
        relay::Options {
            window: Limits {
                events_max: self.publish.in_flight_max as usize,
                bytes_max: self.publish.in_flight_bytes_max,
            },
            takeover_after: self.postgres.takeover_after,
            record_timeout: self.postgres.takeover_after.max(self.publish.ack_timeout),
            drain_timeout: self.publish.drain_timeout,
            dead_letters: self.buries_rejected(),
            holds: !self.stream.hold.is_zero(),
            atomic: self.is_atomic(),
        }
    }

    /// What is deleted, and when.
    pub fn retention_options(&self) -> Result<retention::Options, Failure> {
        let expiring = self.tables.iter().filter_map(|table| {
            let keep = table.keep?;
            let mapping = mapping(table);
            Some(match mapping.column_of(Field::CreatedAt) {
                Some(created_at) => Ok(retention::Table {
                    name: TableName::new(mapping.schema(), mapping.table()),
                    created_at: created_at.to_owned(),
                    keep,
                }),
                None => Err(ageless(table)),
            })
        });
        Ok(retention::Options {
            slot: self.postgres.slot.clone(),
            partitions: self.turns_partitions().then_some(Partitions {
                keep: self.retention.keep,
                ahead_days: self.retention.ahead_days,
            }),
            tables: expiring.collect::<Result<_, _>>()?,
        })
    }

    fn turns_partitions(&self) -> bool {
        self.retention.manage && self.tables.iter().any(|table| table.name.ours())
    }

    fn is_atomic(&self) -> bool {
        self.publish.transactions == Transactions::Atomic
    }

    fn mappings(&self) -> Vec<Mapping> {
        self.tables.iter().map(mapping).collect()
    }
}

fn mapping(table: &Table) -> Mapping {
    let name = &table.name;
    let mut mapping = match mapping::Preset::named(table.preset.word()) {
        Some(preset) => preset.mapping(&name.schema, &name.table),
        None => Mapping::new(&name.schema, &name.table),
    };
    for (field, column) in &table.columns {
        let inside =
            |path: &str, syntax, optional| Origin::Inside(Inside::new(path, syntax, optional));
        let origin = match column {
            Column::Named(name) => Origin::Column(name.clone()),
            Column::Constant(text) => Origin::Constant(text.clone()),
            Column::Json { path, optional } => inside(path, Syntax::Json, *optional),
            Column::Properties(path) => inside(path, Syntax::Properties, true),
        };
        let field = Field::named(field.word()).expect("both know the same fields");
        mapping.set(field, origin);
    }
    let extra = table.extra_columns.iter();
    let extra = extra.map(|(column, header)| ExtraColumn {
        column: column.clone(),
        header: header.as_str().into(),
    });
    mapping.extra = extra.collect();
    match &table.published {
        None => {}
        Some(Published::Never) => mapping.published.clear(),
        Some(Published::By { column, value }) => {
            mapping.published = vec![Marker {
                column: column.clone(),
                value: value.clone(),
                dispensable: false,
            }];
        }
    }
    mapping
}

fn ageless(table: &Table) -> Failure {
    Failure::halt(
        Exit::Config,
        Problem::new(
            format!("the rows of {} have no age", table.name),
            "tables has keep for it, and no column for `created_at`",
            "add `created_at: <column>` to its columns, or remove keep",
        ),
    )
}

fn unusable(key: &str, error: &RouteError) -> Failure {
    Failure::halt(
        Exit::Config,
        Problem::new(
            format!("{key} cannot be used"),
            error.to_string(),
            "write subjects as in events.{aggregatetype}.{type}; routes as \
             {match: \"order.*\", to: \"prod.orders.{1}\"}",
        ),
    )
}
