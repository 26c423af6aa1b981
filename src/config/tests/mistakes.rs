//! The text of every complaint, to the letter.

use super::*;
use crate::error::{Disposition, Exit};

/// What loading complains about, as it is printed.
#[track_caller]
fn complaint(yaml: &str, environment: &[(&str, &str)], set: &[&str]) -> String {
    let failure = load(yaml, environment, set).expect_err("it was accepted");
    assert_eq!(failure.exit, Exit::Config);
    assert_eq!(failure.disposition, Disposition::Halt);
    failure.to_string()
}

/// Asserts the complaint about a file.
#[track_caller]
fn refused(yaml: &str, text: &str) {
    assert_eq!(complaint(yaml, &[], &[]), text.trim_start_matches('\n'));
}

#[test]
fn an_unknown_key_is_pointed_at_with_what_was_meant() {
    refused(
        "postgres:\n  slto: x\n",
        "
outjet.yaml: unknown key `slto`
  cause: outjet.yaml:2:3
         2 |   slto: x
           |   ^^^^
  fix:   did you mean `slot`? `outjet config default` shows every key",
    );
}

#[test]
fn a_key_in_the_wrong_section_is_sent_to_the_right_one() {
    refused(
        "slot: x\n",
        "
outjet.yaml: unknown key `slot`
  cause: outjet.yaml:1:1
         1 | slot: x
           | ^^^^
  fix:   did you mean `postgres.slot`? `outjet config default` shows every key",
    );
}

#[test]
fn an_unknown_key_like_no_other_is_to_be_removed() {
    refused(
        "\n\nzebra: {listen: x}\n",
        "
outjet.yaml: unknown key `zebra`
  cause: outjet.yaml:3:1
         3 | zebra: {listen: x}
           | ^^^^^
  fix:   remove it; `outjet config default` shows every key",
    );
}

#[test]
fn an_unknown_key_inside_a_list_is_pointed_at() {
    refused(
        "tables:\n  - name: a.b\n    colums: {}\n",
        "
outjet.yaml: unknown key `colums`
  cause: outjet.yaml:3:5
         3 |     colums: {}
           |     ^^^^^^
  fix:   did you mean `columns`? `outjet config default` shows every key",
    );
}

#[test]
fn a_number_without_a_unit_is_no_duration() {
    refused(
        "publish:\n  ack_timeout: 30\n",
        "
publish.ack_timeout: `30` has no unit
  cause: outjet.yaml:2:16
         2 |   ack_timeout: 30
           |                ^^
  fix:   write a number and a unit: 500ms, 30s, 2m, 12h or 7d",
    );
}

#[test]
fn a_decimal_unit_is_no_size() {
    refused(
        "publish: {in_flight_bytes_max: 32MB}",
        "
publish.in_flight_bytes_max: `32MB` has the unknown unit \"MB\"
  cause: outjet.yaml:1:32
         1 | publish: {in_flight_bytes_max: 32MB}
           |                                ^^^^
  fix:   write a number and a unit: 512B, 64KiB, 32MiB, 2GiB or 1TiB",
    );
}

#[test]
fn a_word_that_is_not_possible_is_told_the_possible_ones() {
    refused(
        "log: {level: warning}\n",
        "
log.level: `warning` is not one of the possible words
  cause: outjet.yaml:1:14
         1 | log: {level: warning}
           |              ^^^^^^^
  fix:   did you mean `warn`? It can be: error, warn, info, debug, trace",
    );
}

#[test]
fn a_number_beyond_its_limits_is_told_them() {
    refused(
        "stream:\n  replicas: 6\n",
        "
stream.replicas: `6` is too much
  cause: outjet.yaml:2:13
         2 |   replicas: 6
           |             ^
  fix:   write 1 to 5",
    );
}

#[test]
fn a_slot_is_named_as_postgres_demands() {
    refused(
        "postgres:\n  slot: My-Slot\n",
        "
postgres.slot: `My-Slot` is not a name for a replication slot
  cause: outjet.yaml:2:9
         2 |   slot: My-Slot
           |         ^^^^^^^
  fix:   use 1 to 63 of a-z, 0-9 and _, as Postgres demands",
    );
}

#[test]
fn a_table_without_its_schema_is_told_one() {
    refused(
        "tables:\n  - name: events\n",
        "
tables: `events` has no schema
  cause: outjet.yaml:2:11
         2 |   - name: events
           |           ^
  fix:   write it with its schema: public.events",
    );
}

#[test]
fn an_unknown_preset_is_told_the_known_ones() {
    refused(
        "tables:\n  - name: a.b\n    preset: debesium\n",
        "
tables: `debesium` is not one of the possible words
  cause: outjet.yaml:3:13
         3 |     preset: debesium
           |             ^
  fix:   did you mean `debezium`? It can be: native, debezium, pg-outbox, outbox-events, \
         relay-events, envelope, open-outbox, watermill, eventuate, pg-transactional-outbox, none",
    );
}

#[test]
fn a_column_that_is_given_in_two_ways_or_at_no_path_is_refused() {
    let table = |column: &str| {
        let columns = format!("{{id: a, payload: b, type: {column}}}");
        let yaml = format!("tables: [{{name: a.b, preset: none, columns: {columns}}}]");
        complaint(&yaml, &[], &[])
    };
    for column in ["{}", "{value: x, json: a.b}", "{value: x, optional: true}"] {
        let complaint = table(column);
        assert!(
            complaint.contains("given in no way that is known"),
            "{complaint}"
        );
        assert!(
            complaint.contains("{json: column.key, optional: true}"),
            "{complaint}"
        );
    }
    for path in ["a", "a.", ".b", "a..b"] {
        let complaint = table(&format!("{{json: '{path}'}}"));
        assert!(
            complaint.contains(&format!("`{path}` is not a path")),
            "{complaint}"
        );
    }
}

#[test]
fn a_header_that_means_something_cannot_be_made_of_a_column() {
    let table = |header: &str| {
        let yaml =
            format!("tables: [{{name: a.b, preset: native, extra_columns: {{c: {header}}}}}]");
        complaint(&yaml, &[], &[])
    };
    for (header, why) in [
        ("Nats-Rollup", "is reserved"),
        ("outjet-id", "is reserved"),
        ("Content-Type", "is reserved"),
        ("ce-id", "is made of another column"),
        ("CE-region", "is not an attribute"),
        ("ce-a_b", "is not an attribute"),
        ("'a b'", "NATS can carry"),
    ] {
        let complaint = table(header);
        assert!(complaint.contains(why), "{complaint}");
    }
}

#[test]
fn a_mark_of_published_rows_needs_the_name_of_a_column() {
    let table = |published: &str| {
        let yaml = format!("tables: [{{name: a.b, preset: eventuate, published: {published}}}]");
        complaint(&yaml, &[], &[])
    };
    for published in ["''", "{column: '', value: x}"] {
        let complaint = table(published);
        assert!(complaint.contains("a column has no name"), "{complaint}");
    }
    for published in ["{column: state}", "[sent]"] {
        assert!(table(published).contains("published"), "{published}");
    }
}

#[test]
fn a_table_without_a_preset_needs_an_id_and_a_body() {
    refused(
        "tables: [{name: a.b, preset: none}]",
        "
tables: a.b has neither a preset nor a column for `id`
  cause: outjet.yaml:1:17
         1 | tables: [{name: a.b, preset: none}]
           |                 ^
  fix:   add `columns: {id: <column>, ...}`, with the column that identifies a row",
    );
    refused(
        "tables: [{name: a.b, preset: none, columns: {id: k}}]",
        "
tables: a.b has neither a preset nor a column for `payload`
  cause: outjet.yaml:1:17
         1 | tables: [{name: a.b, preset: none, columns: {id: k}}]
           |                 ^
  fix:   add `payload: <column>` (text or JSON) or `payload_raw: <column>` (bytea)",
    );
}

#[test]
fn a_table_is_named_once() {
    refused(
        "tables: [{name: a.b}, {name: A.b}]",
        "
tables: the list names a.b twice
  cause: outjet.yaml:1:9
         1 | tables: [{name: a.b}, {name: A.b}]
           |         ^
  fix:   remove one of the two",
    );
}

#[test]
fn a_source_of_nothing_is_refused() {
    refused(
        "tables: []\n",
        "
there is nothing to publish
  cause: tables is empty
  fix:   name the outbox table in tables, or leave tables out: then it is outbox.events",
    );
}

#[test]
fn a_stream_takes_at_least_one_subject() {
    refused(
        "stream: {subjects: []}\n",
        "
stream.subjects: the list is empty
  cause: outjet.yaml:1:20
         1 | stream: {subjects: []}
           |                    ^
  fix:   write at least one subject: [events.>]",
    );
}

#[test]
fn max_age_is_no_shorter_than_the_duplicate_window() {
    refused(
        "stream: {max_age: 1s}\n",
        "
stream.max_age: `1s` is less than stream.duplicate_window, 15s
  cause: outjet.yaml:1:19
         1 | stream: {max_age: 1s}
           |                   ^^
  fix:   write a longer max_age, or a duplicate_window that is no longer than it",
    );
}

#[test]
fn a_list_a_section_and_a_value_do_not_take_each_others_place() {
    refused(
        "stream: {subjects: a.b}\n",
        "
outjet.yaml: a list must stand here
  cause: outjet.yaml:1:20
         1 | stream: {subjects: a.b}
           |                    ^
  fix:   write it in brackets: [a, b]; `outjet config default` shows every key",
    );
    refused(
        "postgres: 5\n",
        "
outjet.yaml: a section must stand here
  cause: outjet.yaml:1:11
         1 | postgres: 5
           |           ^
  fix:   write its keys below it, indented; `outjet config default` shows every key",
    );
    refused(
        "stream: {name: [a]}\n",
        "
outjet.yaml: a single value must stand here
  cause: outjet.yaml:1:16
         1 | stream: {name: [a]}
           |                ^
  fix:   write it without brackets; `outjet config default` shows every key",
    );
}

#[test]
fn a_key_stands_once() {
    refused(
        "stream:\n  name: a\n  name: b\n",
        "
outjet.yaml: the key `name` stands twice
  cause: outjet.yaml:3:3
         3 |   name: b
           |   ^^^^
  fix:   keep one of them",
    );
}

#[test]
fn broken_yaml_is_pointed_at() {
    refused(
        "postgres:\n\tslot: x\n",
        "
outjet.yaml: tabs disallowed within this context (block indentation)
  cause: outjet.yaml:2:2
         2 | \tslot: x
           | \t^
  fix:   correct the YAML there; `outjet config default` shows every key",
    );
}

#[test]
fn a_line_with_a_secret_is_shown_without_it() {
    refused(
        "nats: {password: hunter2, usr: x}\n",
        "
outjet.yaml: unknown key `usr`
  cause: outjet.yaml:1:27
         1 | nats: {password: ***
           |                           ^^^
  fix:   did you mean `user`? `outjet config default` shows every key",
    );
}

#[test]
fn a_wrong_secret_is_not_repeated() {
    let text = complaint("", &[("NATS_URL", "http://u:hunter2@h")], &[]);
    assert_eq!(
        text,
        "nats.url: the value has an unknown scheme: http://u:***@h
  cause: the environment variable NATS_URL
  fix:   write nats://host:4222 or tls://host:4222, several separated by commas"
    );
    let text = complaint("", &[("NATS_URL", "nats://u:hun,ter2@h")], &[]);
    assert_eq!(
        text,
        "nats.url: the value has a port that is no number: nats://u:***@h
  cause: the environment variable NATS_URL
  fix:   write the port as a number, and a comma in a password as %2C"
    );
    let text = complaint("", &[("NATS_NKEY", "SUhunter2")], &[]);
    assert_eq!(
        text,
        "nats.nkey is neither a seed nor a file with one
  cause: the environment variable NATS_NKEY
  fix:   give the user's seed (58 characters, SU...) or a readable file that holds just that"
    );
}

#[test]
fn halves_of_a_pair_ask_for_the_other() {
    assert_eq!(
        complaint("", &[("NATS_PASSWORD", "x")], &[]),
        "nats.password: a password without a user
  cause: the environment variable NATS_PASSWORD
  fix:   give nats.user, too"
    );
    assert_eq!(
        complaint("", &[], &["nats.tls.cert=a"]),
        "nats.tls.cert: a certificate without its key
  cause: the flag --set nats.tls.cert
  fix:   give nats.tls.key, too"
    );
}

#[test]
fn a_secret_and_its_file_contradict_in_one_place() {
    refused(
        "postgres:\n  url: a\n  url_file: b\n",
        "
postgres.url and postgres.url_file are both given
  cause: outjet.yaml:3:13
         3 |   url_file: b
           |             ^
  fix:   remove one of the two",
    );
}

#[test]
fn a_missing_secret_file_is_named() {
    assert_eq!(
        complaint("", &[("NATS_TOKEN_FILE", "/nonexistent/token")], &[]),
        "nats.token_file: cannot read /nonexistent/token: No such file or directory (os error 2)
  cause: the environment variable NATS_TOKEN_FILE
  fix:   name a file that outjet may read"
    );
}

#[test]
fn a_variable_that_is_no_key_is_named_with_what_was_meant() {
    assert_eq!(
        complaint("", &[("OUTJET_STREAM_NAME", "x")], &[]),
        "OUTJET_STREAM_NAME names no key of the configuration
  cause: the environment variable OUTJET_STREAM_NAME stands for the key stream_name, \
which does not exist
  fix:   did you mean OUTJET_STREAM__NAME?"
    );
}

#[test]
fn a_wrong_value_in_a_variable_or_a_flag_names_it() {
    assert_eq!(
        complaint("", &[("OUTJET_STREAM__REPLICAS", "six")], &[]),
        "stream.replicas: `six` is not a whole number
  cause: the environment variable OUTJET_STREAM__REPLICAS
  fix:   write digits only"
    );
    assert_eq!(
        complaint("", &[], &["stream.subjects=events.>"]),
        "stream.subjects: a list must stand here
  cause: the flag --set stream.subjects
  fix:   write a YAML list on one line, as in [events.>]"
    );
    assert_eq!(
        complaint("", &[], &["stream.nam=x"]),
        "unknown key `stream.nam`
  cause: the flag --set stream.nam stands for the key stream.nam, which does not exist
  fix:   did you mean stream.name?"
    );
}

#[test]
fn a_flag_without_a_value_is_a_mistake_of_usage() {
    let failure = Override::from_set("stream.name").unwrap_err();
    assert_eq!(failure.exit, Exit::Usage);
    assert_eq!(
        failure.to_string(),
        "--set stream.name is not an assignment
  cause: there is no = in it
  fix:   write --set KEY=VALUE, as in --set stream.name=ORDERS"
    );
}

#[test]
fn a_file_that_was_asked_for_must_exist() {
    let failure = Config::load(&Sources {
        file: Some(Path::new("/nonexistent/outjet.yaml")),
        searched: &[],
        environment: &BTreeMap::new(),
        overrides: &[],
    });
    assert_eq!(
        failure.unwrap_err().to_string(),
        "cannot read the configuration file /nonexistent/outjet.yaml
  cause: No such file or directory (os error 2)
  fix:   name a readable file with -c, or none: every key has a default"
    );
}

#[test]
fn what_is_kept_too_briefly_or_in_two_ways_is_refused() {
    refused(
        "retention: {keep: 5m}\n",
        "
retention.keep: `5m` is too little
  cause: outjet.yaml:1:19
         1 | retention: {keep: 5m}
           |                   ^^
  fix:   write 1h to 3650d",
    );
    refused(
        "tables: [{name: outbox.events, keep: 9d}]\n",
        "
tables: outbox.events has keep, and expires by its partitions
  cause: outjet.yaml:1:17
         1 | tables: [{name: outbox.events, keep: 9d}]
           |                 ^
  fix:   write retention.keep instead",
    );
    refused(
        "tables: [{name: a.b, keep: 5m}]\n",
        "
tables: the list has keep: 5m, which is too little
  cause: outjet.yaml:1:9
         1 | tables: [{name: a.b, keep: 5m}]
           |         ^
  fix:   write 1h to 3650d",
    );
    let ageless = "tables: [{name: a.b, preset: none, columns: {id: i, payload: p}, keep: 9d}]";
    let failure = yaml(ageless)
        .retention_options()
        .expect_err("no created_at");
    assert_eq!(failure.problem.problem, "the rows of a.b have no age");
}

#[test]
fn the_prefix_of_our_own_messages_is_not_for_events() {
    refused(
        "messages: {prefixes: [outbox, outjet]}\n",
        "
messages.prefixes: the list has `outjet`, which outjet itself uses for `outjet replay`
  cause: outjet.yaml:1:22
         1 | messages: {prefixes: [outbox, outjet]}
           |                      ^
  fix:   choose another prefix",
    );
}

#[test]
fn what_takes_a_stream_of_our_own_does_not_go_with_a_shared_one() {
    let shared = "stream:\n  shared: true\n  duplicate_window: 2m\n";
    refused(
        &format!("{shared}  hold: 4m\n"),
        "
stream.hold: `4m` does not go with stream.shared
  cause: outjet.yaml:4:9
         4 |   hold: 4m
           |         ^^
  fix:   leave it out, or give outjet a stream of its own",
    );
    refused(
        &format!("{shared}  ingress: private\n"),
        "
stream.ingress: `private` does not go with stream.shared
  cause: outjet.yaml:4:12
         4 |   ingress: private
           |            ^^^^^^^
  fix:   leave it out, or give outjet a stream of its own",
    );
    refused(
        &format!("{shared}publish:\n  transactions: atomic\n"),
        "
publish.transactions: `atomic` does not go with stream.shared
  cause: outjet.yaml:5:17
         5 |   transactions: atomic
           |                 ^^^^^^
  fix:   leave it out, or give outjet a stream of its own",
    );
    let alone = shared.replace("true", "false") + "  hold: 4m\n  ingress: private\n";
    assert!(load(&alone, &[], &[]).is_ok());
    assert!(load(shared, &[], &[]).is_ok());
}

#[test]
fn shared_stream_must_remember_ids_for_a_while() {
    refused(
        "stream:\n  shared: true\n  duplicate_window: 59s\n",
        "
stream.duplicate_window: `59s` is too little for stream.shared, where nothing else keeps a copy \
out that arrives late
  cause: outjet.yaml:3:21
         3 |   duplicate_window: 59s
           |                     ^^^
  fix:   write 2m; 1m or more",
    );
    let unset = load("stream: {shared: true}", &[], &[]).expect("a configuration");
    assert_eq!(unset.stream.duplicate_window, Duration::from_secs(120));
    let enough = "stream: {shared: true, duplicate_window: 1m}";
    assert!(load(enough, &[], &[]).is_ok());
}
