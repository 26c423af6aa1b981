-- What became of each event of two streams, as they stand in pg_temp.outjet_compared: how many
-- events of each kind there are, and the first of them as JSON. An event may be of several kinds.
-- $1: how much later, in seconds, an event may come to one stream than to the other. $2: when the
-- streams were opened. $3: most events of a kind that are named.
WITH pair AS MATERIALIZED (
  SELECT id,
    count(*) FILTER (WHERE ours) AS our_count,
    count(*) FILTER (WHERE NOT ours) AS their_count,
    min(sequence) FILTER (WHERE ours) AS our_sequence,
    min(sequence) FILTER (WHERE NOT ours) AS their_sequence,
    min(stored) FILTER (WHERE ours) AS our_time,
    min(stored) FILTER (WHERE NOT ours) AS their_time,
    (array_agg(subject ORDER BY sequence) FILTER (WHERE ours))[1] AS our_subject,
    (array_agg(subject ORDER BY sequence) FILTER (WHERE NOT ours))[1] AS their_subject,
    (array_agg(body ORDER BY sequence) FILTER (WHERE ours))[1] AS our_body,
    (array_agg(body ORDER BY sequence) FILTER (WHERE NOT ours))[1] AS their_body,
    (array_agg(ordered_by ORDER BY sequence) FILTER (WHERE ours))[1] AS ordered_by
  FROM pg_temp.outjet_compared
  WHERE id IS NOT NULL
  GROUP BY id
),
-- In each stream: from where to where the other one has events, too.
bounds AS (
  SELECT true AS ours, min(our_sequence) AS first, max(our_sequence) AS last, min(our_time) AS begun
  FROM pair WHERE our_count > 0 AND their_count > 0
  UNION ALL
  SELECT false, min(their_sequence), max(their_sequence), min(their_time)
  FROM pair WHERE our_count > 0 AND their_count > 0
),
-- In one stream only, and why it need not be missing in the other. Without bounds it is.
lone AS (
  SELECT CASE
      WHEN sequence > last OR stored > $2::timestamptz - $1 * interval '1 second' THEN 'not_yet'
      WHEN sequence < first OR stored < begun + $1 * interval '1 second' THEN 'earlier'
      WHEN id IS NULL THEN 'without_id'
      WHEN ours THEN 'only_ours'
      ELSE 'only_theirs'
    END AS kind, one.*
  FROM (
    SELECT id, true AS ours, our_sequence AS sequence, our_time AS stored, our_subject AS subject
    FROM pair WHERE their_count = 0
    UNION ALL
    SELECT id, false, their_sequence, their_time, their_subject FROM pair WHERE our_count = 0
    UNION ALL
    SELECT id, ours, sequence, stored, subject FROM pg_temp.outjet_compared WHERE id IS NULL
  ) one JOIN bounds USING (ours)
),
-- In both; late: behind the one that outjet has published after it.
both_have AS (
  SELECT pair.*,
    lag(their_sequence) OVER (PARTITION BY ordered_by ORDER BY our_sequence) > their_sequence AS late
  FROM pair
  WHERE our_count > 0 AND their_count > 0
),
found AS (
  SELECT kind, id, CASE WHEN ours THEN sequence END AS our_sequence,
    CASE WHEN NOT ours THEN sequence END AS their_sequence,
    CASE WHEN ours THEN subject END AS our_subject,
    CASE WHEN NOT ours THEN subject END AS their_subject, stored
  FROM lone
  UNION ALL
  SELECT kind, id, our_sequence, their_sequence, our_subject, their_subject, our_time
  FROM both_have, LATERAL (VALUES
    ('both', true),
    ('repeated_ours', our_count > their_count),
    ('repeated_theirs', their_count > our_count),
    ('subject', our_subject <> their_subject),
    ('body', our_body <> their_body),
    ('swapped', late)
  ) AS kinds (kind, holds)
  WHERE holds
),
numbered AS (
  SELECT *, row_number() OVER (PARTITION BY kind ORDER BY stored, our_sequence, their_sequence) AS n
  FROM found
)
SELECT kind, max(n) AS events, coalesce(json_agg(json_strip_nulls(json_build_object(
    'id', id, 'our_sequence', our_sequence, 'their_sequence', their_sequence,
    'our_subject', our_subject, 'their_subject', their_subject, 'stored', stored)) ORDER BY n)
  FILTER (WHERE n <= $3 AND kind <> 'both'), '[]')::text AS first
FROM numbered
GROUP BY kind
