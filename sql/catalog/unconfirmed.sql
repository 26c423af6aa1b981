-- Looks at most at about $3 changes that slot $1 has not confirmed, without consuming them: how
-- many there were, and how many of them may be events: inserts ('I', pgoutput's message type) and
-- transactional messages ('M' and 1), whatever their prefix.
SELECT
  count(*)::bigint AS changes,
  count(*) FILTER (WHERE get_byte(data, 0) = ascii('I')
    OR get_byte(data, 0) = ascii('M') AND get_byte(data, 1) = 1)::bigint AS events
FROM pg_logical_slot_peek_binary_changes(
  $1::text::name, NULL, $3::int,
  'proto_version', '1', 'publication_names', $2::text, 'messages', 'true')
