SELECT outbox.emit(
  aggregatetype => $1::text,
  aggregateid => $2::text,
  type => $3::text,
  payload => $4::text::jsonb,
  topic => $5::text,
  headers => $6::text::jsonb,
  id => $7::text::uuid
)::text
