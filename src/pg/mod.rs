//! Postgres.

pub mod catalog;
pub mod ddl;
