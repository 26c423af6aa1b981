//! Rows that no slot has sent: what would become of them, or what becomes of them now.

use bytes::Bytes;

use super::{Options, Rejection, RowReader};
use crate::event::mapping::{Columns, Mapping, MappingError, Plan};
use crate::event::{Event, Position};

/// A table whose rows were read by a query.
pub struct Unsent<'a> {
    options: &'a Options,
    plan: Plan,
    source: String,
}

impl<'a> Unsent<'a> {
    /// Of one of the tables of `options`, which has these columns.
    pub fn new(
        options: &'a Options,
        mapping: &Mapping,
        columns: Columns<'_>,
    ) -> Result<Self, MappingError> {
        let plan = Plan::resolve(mapping, columns, options.subject.fields())?;
        let source = options.source_of(&plan.table);
        Ok(Self {
            options,
            plan,
            source,
        })
    }

    /// The event that a row becomes. Its values, one for each column, are as a session with
    /// outjet's settings prints them; `recorded` is RFC 3339.
    pub fn event(
        &self,
        position: Position,
        recorded: &str,
        values: Vec<Option<&[u8]>>,
    ) -> Result<Event, Box<Rejection>> {
        let reader = RowReader {
            options: self.options,
            plan: &self.plan,
            source: &self.source,
            row: self.plan.row(values),
            body: &Bytes::new(),
            again: None,
        };
        reader.read(position, recorded, &mut 0)
    }
}
