-- One transaction, in the order of the array. As bytes: messages are sent as they are, whatever the
-- encoding of the database.
SELECT pg_catalog.pg_logical_emit_message(true, $1::text, content)
FROM pg_catalog.unnest($2::bytea[]) AS content
