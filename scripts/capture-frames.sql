-- What scripts/capture-frames runs. An empty line ends a statement (or several in one implicit
-- transaction). src/pg/pgoutput/golden.rs counts on every line of it.

CREATE SCHEMA golden;
CREATE TYPE golden.mood AS ENUM ('calm', 'über');
CREATE DOMAIN golden.code AS text CHECK (value <> '');
CREATE TABLE golden.kinds (
    id int8 PRIMARY KEY,
    note text,
    raw bytea,
    doc jsonb,
    mood golden.mood,
    code golden.code,
    price numeric(10, 2)
);
ALTER TABLE golden.kinds ALTER note SET STORAGE EXTERNAL;
CREATE TABLE golden.full_identity (id int4, note text);
ALTER TABLE golden.full_identity REPLICA IDENTITY FULL;
CREATE TABLE golden.index_identity (id int4, code text NOT NULL);
CREATE UNIQUE INDEX code ON golden.index_identity (code);
ALTER TABLE golden.index_identity REPLICA IDENTITY USING INDEX code;
CREATE TABLE golden.no_identity ("Odd ""name" text);
ALTER TABLE golden.no_identity REPLICA IDENTITY NOTHING;
CREATE TABLE golden.parted (id int4, day date NOT NULL, PRIMARY KEY (id, day))
    PARTITION BY RANGE (day);
CREATE TABLE golden.parted_2026 (day date NOT NULL, id int4 NOT NULL);
ALTER TABLE golden.parted ATTACH PARTITION golden.parted_2026
    FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE TABLE golden.no_columns ();
CREATE TABLE golden.unpublished (id int4);

CREATE PUBLICATION golden
    FOR TABLE golden.kinds, golden.full_identity, golden.index_identity, golden.parted
    WITH (publish_via_partition_root = true);
CREATE PUBLICATION golden_inserts
    FOR TABLE golden.no_identity, golden.no_columns WITH (publish = 'insert');

SELECT pg_create_logical_replication_slot('golden', 'pgoutput');

-- Every sort of value, a row of NULLs, and one that is stored out of line.
INSERT INTO golden.kinds VALUES
    (1, E'line\nbreak', '\x00ff', '{"b": 1, "a": [null]}', 'über', 'x', 12.5),
    (-2, NULL, NULL, NULL, NULL, NULL, NULL),
    (3, repeat('z', 2100), '', '"text"', 'calm', 'y', 'NaN');

-- No old row: the key stays. The value stored out of line is not sent again.
UPDATE golden.kinds SET price = 1 WHERE id = 3;

-- The old key.
UPDATE golden.kinds SET id = 4 WHERE id = 1;

DELETE FROM golden.kinds WHERE id = 4;

-- The whole old row.
INSERT INTO golden.full_identity VALUES (1, NULL);
UPDATE golden.full_identity SET note = 'new';
DELETE FROM golden.full_identity;

-- The columns of the index.
INSERT INTO golden.index_identity VALUES (1, 'a');
UPDATE golden.index_identity SET code = 'b';
DELETE FROM golden.index_identity;

INSERT INTO golden.no_identity VALUES ('');

INSERT INTO golden.no_columns DEFAULT VALUES;

-- The root's oid and column order, not the leaf's.
INSERT INTO golden.parted VALUES (7, '2026-03-01');

COPY golden.full_identity FROM STDIN;
1	one
2	\N
3	three
\.

TRUNCATE golden.kinds;

TRUNCATE golden.kinds, golden.full_identity RESTART IDENTITY CASCADE;

-- Nothing published: 14 sends Begin and Commit all the same.
INSERT INTO golden.unpublished VALUES (1);

BEGIN;
INSERT INTO golden.full_identity VALUES (10, 'kept');
SAVEPOINT s;
INSERT INTO golden.full_identity VALUES (11, 'rolled back');
ROLLBACK TO s;
INSERT INTO golden.full_identity VALUES (12, 'kept');
COMMIT;

-- Not transactional: sent before its transaction, and although that rolls back.
BEGIN;
SELECT pg_logical_emit_message(false, 'signal', '\x00ff'::bytea);
INSERT INTO golden.full_identity VALUES (13, 'rolled back');
ROLLBACK;

BEGIN;
SELECT pg_logical_emit_message(true, 'outbox.orders', '{"id": 1}');
INSERT INTO golden.full_identity VALUES (14, 'after a message');
COMMIT;

-- The columns change in the middle of a transaction.
BEGIN;
INSERT INTO golden.full_identity VALUES (15, 'two columns');
ALTER TABLE golden.full_identity ADD extra bool DEFAULT true;
INSERT INTO golden.full_identity VALUES (16, 'three columns');
COMMIT;

SELECT pg_replication_origin_create('elsewhere');

SELECT pg_replication_origin_session_setup('elsewhere');

BEGIN;
SELECT pg_replication_origin_xact_setup('16/B374D848', '2020-01-02 03:04:05.678901+00');
INSERT INTO golden.index_identity VALUES (2, 'replicated');
COMMIT;

SELECT pg_replication_origin_session_reset();

SELECT pg_logical_emit_message(true, 'the end', '');
