//! The journal against a simple model: in any order of begin, end, store and acknowledge, and wherever the process dies,
//! the ledger has each ended request as it ended, each request that only began as interrupted, and nothing else.

use crate::stand::{Mood, SMALL, Stand, TestLedger};
use keygate::model::id::RequestId;
use keygate::model::usage::Outcome;
use keygate::usage::PendingRecord;
use keygate::usage::WhenFull;
use keygate::usage::journal::RecordBatch;
use keygate::usage::journal::disk::RealDisk;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

#[derive(Clone, Debug)]
enum Step {
    /// A request begins.
    Begin,
    /// One of the begun requests ends.
    End(prop::sample::Index),
    /// The writer stores up to so many records; with `false` it dies before it can acknowledge them.
    Store(usize, bool),
    /// Records that keep an old segment open are carried over.
    Carry,
    /// The process dies, and the last so many bytes that it wrote are lost.
    Crash(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Begin),
        6 => any::<prop::sample::Index>().prop_map(Step::End),
        3 => (1_usize..20, prop::bool::weighted(0.8)).prop_map(|(most, acknowledges)| Step::Store(most, acknowledges)),
        1 => Just(Step::Carry),
        1 => prop_oneof![Just(0), 1_usize..60].prop_map(Step::Crash),
    ]
}

/// The last write, which can be torn.
#[derive(Clone, Copy)]
enum Last {
    Beginning(RequestId),
    End(RequestId),
    Nothing,
}

/// The state of the model.
#[derive(Default)]
struct Model {
    outcomes: BTreeMap<RequestId, Outcome>,
}

struct Run {
    stand: Stand,
    open: Vec<(RequestId, PendingRecord)>,
    ledger: Arc<TestLedger>,
    model: Model,
    last: Last,
    number: u32,
    unacknowledged: bool,
}

impl Run {
    fn take(&mut self, step: &Step) {
        match step {
            Step::Begin => {
                let (id, pending) = self.stand.begin(self.number);
                self.number += 1;
                self.model.outcomes.insert(id, Outcome::Interrupted);
                self.open.push((id, pending));
                self.last = Last::Beginning(id);
            }
            Step::End(which) if !self.open.is_empty() => {
                let (id, pending) = self.open.swap_remove(which.index(self.open.len()));
                pending.complete(Outcome::Served, 200);
                self.model.outcomes.insert(id, Outcome::Served);
                self.last = Last::End(id);
            }
            Step::End(_) => {}
            Step::Store(most, acknowledges) => self.store(*most, *acknowledges),
            Step::Carry => {
                let before = self.stand.segments();
                self.stand.reader.as_mut().unwrap().carry();
                if self.stand.segments() != before {
                    self.last = Last::Nothing;
                }
            }
            Step::Crash(cut) => self.crash(*cut),
        }
    }

    fn store(&mut self, most: usize, acknowledges: bool) {
        let reader = self.stand.reader.as_mut().unwrap();
        reader.begin_round();
        let mut batch = RecordBatch::default();
        reader.read(most, &mut batch);
        self.ledger.add(&batch.records);
        if self.unacknowledged || !acknowledges {
            // A dead writer does nothing more.
            self.unacknowledged = true;
            return;
        }
        reader.acknowledge(&batch, 0..batch.len());
        reader.retire();
    }

    fn crash(&mut self, cut: usize) {
        let copy = self.stand.crashed();
        let torn = cut > 0 && tear(&copy.path().join("journal"), cut, self.last);
        match self.last {
            Last::Beginning(id) if torn => {
                self.model.outcomes.remove(&id);
            }
            Last::End(id) if torn && !self.ledger.rows().contains_key(&id) => {
                self.model.outcomes.insert(id, Outcome::Interrupted);
            }
            Last::Beginning(_) | Last::End(_) | Last::Nothing => {}
        }
        self.open.clear();
        self.stand = Stand::at(copy, SMALL, WhenFull::Shed, Arc::new(RealDisk));
        self.last = Last::Nothing;
        self.unacknowledged = false;
    }

    /// The next start stores the rest.
    fn check(mut self) {
        self.crash(0);
        let reader = self.stand.reader.as_mut().unwrap();
        let mut batch = RecordBatch::default();
        let mut has_more = true;
        while has_more {
            batch.clear();
            has_more = reader.read(7, &mut batch);
            self.ledger.add(&batch.records);
            reader.acknowledge(&batch, 0..batch.len());
            reader.retire();
        }
        assert_eq!(reader.open(), 0);
        let rows: BTreeMap<_, _> =
            self.ledger.rows().into_iter().map(|(id, row)| (id, row.outcome)).collect();
        assert_eq!(rows, self.model.outcomes);
        assert!(!reader.is_behind());
    }
}

/// Zeros the end of the last write. False: that write is in no segment any more, or not in its last.
fn tear(folder: &Path, cut: usize, last: Last) -> bool {
    let (Last::Beginning(id) | Last::End(id)) = last else { return false };
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        let Some(end) = bytes.iter().rposition(|b| *b != 0).filter(|end| *end >= 256) else { continue };
        // The last frame with content: its payload begins with a byte of flags and the identity.
        let found = bytes.windows(16).rposition(|window| window == id.0.as_bytes());
        let Some(start) = found.map(|at| at - 17) else { continue };
        let len = u32::from_le_bytes(bytes[start + 4..start + 8].try_into().unwrap()) as usize;
        let is_of_kind = bytes[start + 2] == if matches!(last, Last::Beginning(_)) { 1 } else { 2 };
        if is_of_kind && bytes[start..start + 2] == *b"KG" && end < start + 16 + len {
            let from = end + 1 - cut.min(end + 1 - start);
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all_at(&vec![0; end + 1 - from], from as u64).unwrap();
            return true;
        }
    }
    false
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

    #[test]
    fn nothing_is_lost_and_nothing_is_made_up(steps in prop::collection::vec(step(), 1..120)) {
        let mut run = Run {
            stand: Stand::new(SMALL),
            open: Vec::new(),
            ledger: TestLedger::new(Mood::Well),
            model: Model::default(),
            last: Last::Nothing,
            number: 0,
            unacknowledged: false,
        };
        for step in &steps {
            run.take(step);
        }
        run.check();
    }
}
