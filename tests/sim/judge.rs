//! What must be true of a history: nothing lost, nothing twice that was not counted, everything in
//! commit order. Knows what was committed and what the broker has ever stored; asks no outjet.

use std::collections::BTreeMap;

use outjet::lsn::Lsn;

/// An event that was committed, in commit order. Its number is its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) number: u64,
    /// The end of its commit: who confirms this has settled it.
    pub(crate) end: Lsn,
    /// It has a time of its own: in no order, and at first in the stream of what is delayed.
    pub(crate) delayed: bool,
    /// A promotion has cut it off, or the broker has forgotten it: it may be stored, and need not
    /// be.
    pub(crate) cut_off: bool,
    /// Somebody has moved the slot past it: it may be lost, if that is told, or come late.
    pub(crate) passed_over: bool,
}

impl Due {
    /// It must be stored.
    pub(crate) fn owed(&self) -> bool {
        !self.cut_off && !self.passed_over
    }
}

/// Where a message of ours is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the stream.
    Main,
    /// Among the dead letters.
    Dead,
    /// Among those that the server keeps until they are due.
    Kept,
    /// Among those that it has kept.
    Appeared,
}

/// A message of ours that the broker has stored, whether it is still there or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) number: u64,
    /// Where it is.
    pub(crate) place: Place,
    /// So soon behind a message of somebody else that it may have been under way: what is refused
    /// because of that may be overtaken.
    pub(crate) disturbed: bool,
}

/// Whether everything that ends at or before `confirmed` was stored.
pub(crate) fn confirmed(due: &[Due], found: &[Found], confirmed: Lsn) -> Result<(), String> {
    let stored: BTreeMap<u64, ()> = found.iter().map(|found| (found.number, ())).collect();
    let lost = |due: &&Due| due.owed() && due.end <= confirmed && !stored.contains_key(&due.number);
    match due.iter().find(lost) {
        None => Ok(()),
        Some(Due { number, end, .. }) => Err(format!(
            "event {number} (its commit ends at {end}) is not stored, and {confirmed} is confirmed"
        )),
    }
}

/// The whole history, when all is quiet. `uncertain` events may be there twice; a gap was told or
/// not.
pub(crate) fn whole(
    due: &[Due],
    found: &[Found],
    (uncertain, gap_told): (u64, bool),
) -> Result<(), String> {
    let mut times: BTreeMap<u64, u64> = BTreeMap::new();
    for found in found.iter().filter(|found| found.place != Place::Kept) {
        *times.entry(found.number).or_default() += 1;
    }
    let mut missing = due.iter().filter(|due| !times.contains_key(&due.number));
    if let Some(lost) = missing.find(|due| due.owed() || (!due.cut_off && !gap_told)) {
        return Err(format!("event {} is lost without a word", lost.number));
    }
    // What was cut off has no place among what was committed instead, and what was forgotten,
    // passed over or delayed may come late.
    let places = due.iter().enumerate();
    let orders = places.map(|(at, due)| (due.number, (due.owed() && !due.delayed).then_some(at)));
    let orders: BTreeMap<u64, Option<usize>> = orders.collect();
    if let Some(found) = found
        .iter()
        .find(|found| !orders.contains_key(&found.number))
    {
        return Err(format!("event {} was never committed", found.number));
    }
    let twice: u64 = times.values().map(|times| times - 1).sum();
    if twice > uncertain {
        let numbers: Vec<_> = times
            .iter()
            .filter(|(_, times)| **times > 1)
            .map(|(n, _)| n)
            .collect();
        return Err(format!(
            "{twice} too many of events {numbers:?}, of which {uncertain} were counted as uncertain"
        ));
    }
    in_order(found, &orders)
}

/// What must appear as a whole: a transaction, and in which batch each of its events was stored.
/// Some of them may be elsewhere: among the dead letters, or delayed.
pub(crate) fn torn(transactions: &BTreeMap<Lsn, Vec<Option<String>>>) -> Result<(), String> {
    let torn = transactions.iter().find(|(_, batches)| {
        let alone = batches.len() < 2;
        !alone && (batches[0].is_none() || batches.iter().any(|batch| *batch != batches[0]))
    });
    match torn {
        None => Ok(()),
        Some((end, batches)) => Err(format!(
            "the transaction that ends at {end} was stored in parts: {batches:?}"
        )),
    }
}

/// Each event, where it was stored for the first time, behind its predecessors.
fn in_order(found: &[Found], orders: &BTreeMap<u64, Option<usize>>) -> Result<(), String> {
    let mut seen: BTreeMap<u64, ()> = BTreeMap::new();
    let mut last: Option<(usize, u64)> = None;
    for found in found.iter().filter(|found| found.place == Place::Main) {
        if seen.insert(found.number, ()).is_some() || found.disturbed {
            continue;
        }
        let Some(order) = orders[&found.number] else {
            continue;
        };
        if let Some((before, number)) = last
            && order < before
        {
            return Err(format!(
                "event {} is stored behind event {number}",
                found.number
            ));
        }
        last = Some((order, found.number));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(numbers: impl IntoIterator<Item = u64>) -> Vec<Due> {
        let due = |number| Due {
            number,
            end: Lsn::new(number * 10),
            delayed: false,
            cut_off: false,
            passed_over: false,
        };
        numbers.into_iter().map(due).collect()
    }

    fn found(numbers: impl IntoIterator<Item = u64>) -> Vec<Found> {
        let found = |number| Found {
            number,
            place: Place::Main,
            disturbed: false,
        };
        numbers.into_iter().map(found).collect()
    }

    #[test]
    fn what_is_confirmed_is_stored() {
        assert_eq!(confirmed(&due([1, 2]), &found([1]), Lsn::new(19)), Ok(()));
        assert!(confirmed(&due([1, 2]), &found([1]), Lsn::new(20)).is_err());
    }

    #[test]
    fn loss_doubling_disorder_and_inventions_are_told() {
        assert_eq!(
            whole(&due([1, 2, 3]), &found([1, 2, 3]), (0, false)),
            Ok(())
        );
        assert!(whole(&due([1, 2, 3]), &found([1, 3]), (9, false)).is_err());
        assert!(whole(&due([1, 2]), &found([2, 1]), (9, false)).is_err());
        assert!(whole(&due([1]), &found([1, 2]), (9, false)).is_err());
        assert!(whole(&due([1, 2]), &found([1, 2, 1]), (0, false)).is_err());
        assert_eq!(whole(&due([1, 2]), &found([1, 2, 1]), (1, false)), Ok(()));
    }

    #[test]
    fn parts_of_a_transaction_are_told() {
        let stored = |batches: &[&str]| {
            let batch = |name: &&str| (!name.is_empty()).then(|| (*name).to_owned());
            torn(&BTreeMap::from([(
                Lsn::new(1),
                batches.iter().map(batch).collect(),
            )]))
        };
        assert_eq!(stored(&[]), Ok(()));
        assert_eq!(stored(&[""]), Ok(()));
        assert_eq!(stored(&["a", "a"]), Ok(()));
        assert!(stored(&["a", "b"]).is_err());
        assert!(stored(&["", ""]).is_err());
    }
}
