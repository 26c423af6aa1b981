//! One row on its own, for showing what would become of it.

use bytes::Bytes;

use super::{Options, Reason, RowReader};
use crate::event::{Event, Position};
use crate::mapping::{Columns, MappingError, Plan};

/// The event that a row of the first table would become: alone, at no position and at no time. The
/// values are as a session with outjet's settings prints them.
pub fn sample(
    options: &Options,
    columns: Columns<'_>,
    values: &[Option<&str>],
) -> Result<Result<Event, Reason>, MappingError> {
    let mapping = options.tables.first().expect("a table to take a row of");
    let plan = Plan::resolve(mapping, columns, options.subject.fields())?;
    let body: String = values.iter().flatten().copied().collect();
    let body = Bytes::from(body);
    let mut rest = &body[..];
    let values = values.iter().map(|value| {
        let (value, after) = rest.split_at((*value)?.len());
        rest = after;
        Some(value)
    });
    let row = plan.row(values.collect());
    let source = options.source_of(&plan.table);
    let reader = RowReader {
        options,
        plan: &plan,
        source: &source,
        row,
        body: &body,
        again: None,
    };
    let nowhere = Position {
        commit: 0,
        index: 0,
    };
    Ok(reader.event(nowhere, "", &mut 0))
}
