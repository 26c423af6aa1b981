SELECT count(outbox.emit(
  aggregatetype => 'outjet_bench',
  aggregateid => $1::text,
  type => 'Bench',
  payload => $2::text::jsonb,
  id => id::uuid
))
FROM unnest($3::text[]) AS id
