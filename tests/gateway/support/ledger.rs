//! The invariant that every pipeline test checks: what was accepted is stored, in the journal, or counted as lost.

use super::{Gateway, Raw, Request, eventually};

/// Usage records by where they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Accounts {
    pub(crate) accepted: u64,
    pub(crate) stored: u64,
    pub(crate) on_the_way: u64,
    pub(crate) shed: u64,
    pub(crate) set_aside: u64,
}

impl Gateway {
    /// The accounting of the usage records at one moment. Fails unless it adds up.
    #[track_caller]
    pub(crate) fn accounts(&self) -> Accounts {
        let metrics = self.metrics();
        let of = |name| number_of(&metrics, name);
        let accounts = Accounts {
            accepted: of("keygate_usage_accepted_total"),
            stored: of("keygate_usage_stored_total"),
            on_the_way: of("keygate_usage_in_journal"),
            shed: of("keygate_usage_shed_total"),
            set_aside: of("keygate_usage_set_aside_total"),
        };
        let Accounts { accepted, stored, on_the_way, shed, set_aside } = accounts;
        assert_eq!(accepted, stored + on_the_way + shed + set_aside, "{accounts:?}");
        accounts
    }

    /// The same once the journal is empty.
    #[track_caller]
    pub(crate) fn settled_accounts(&self) -> Accounts {
        eventually("every usage record has arrived", || Some(self.accounts()).filter(|a| a.on_the_way == 0))
    }

    /// The same, and that many were accepted. A record without room in the journal is counted a moment after its response.
    #[track_caller]
    pub(crate) fn settled_accounts_of(&self, accepted: u64) -> Accounts {
        let accounts = eventually("every usage record is accounted for", || {
            Some(self.accounts()).filter(|a| a.on_the_way == 0 && a.accepted >= accepted)
        });
        assert_eq!(accounts.accepted, accepted, "{accounts:?}");
        accounts
    }

    pub(crate) fn metrics(&self) -> String {
        Raw::connect(self.admin).call(&Request::get("/metrics")).text()
    }
}

#[track_caller]
fn number_of(metrics: &str, name: &str) -> u64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let line = line.unwrap_or_else(|| panic!("no {name} in {metrics}"));
    line.parse().unwrap_or_else(|_| panic!("{name} is {line}"))
}
