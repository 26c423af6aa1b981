-- github.com/eventuate-foundation/eventuate-common, postgres/2.initialize-database.sql.
CREATE SCHEMA eventuate;
CREATE TABLE eventuate.message (
  id            varchar(1000) PRIMARY KEY,
  destination   text          NOT NULL,
  headers       text          NOT NULL,
  payload       text          NOT NULL,
  published     smallint      DEFAULT 0,
  creation_time bigint
);
