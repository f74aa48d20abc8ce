//! Which limits the routes can count.
//!
//! Must not know: who sets a limit, or where.

use super::route::{Route, RouteTable};
use crate::model::key::Measure;
use crate::model::scope::Scopes;
use crate::policy::meter::MeterRule;

/// What counts on a route that takes a key.
#[derive(Clone, Copy, Debug)]
pub struct KeyRoute<'r> {
    /// The scopes that a key must grant.
    pub scopes: &'r Scopes,
    /// How its answers are metered, if they are.
    pub meter: Option<&'r MeterRule>,
}

/// Why a limit on this measure would count nothing; none if a route counts it. `granted`: the scopes of the key that has the limit;
/// none: it is a plan's, so any key may.
///
/// A node without routes does not know those of the nodes that serve requests, and takes every limit.
pub fn why_uncounted<'r>(
    routes: impl Iterator<Item = KeyRoute<'r>>,
    measure: Measure,
    granted: Option<&Scopes>,
) -> Option<String> {
    let mut routes = routes.peekable();
    if measure == Measure::Requests || routes.peek().is_none() {
        return None;
    }
    let may_use =
        |route: &KeyRoute<'_>| granted.is_none_or(|granted| granted.lacking(route.scopes).is_empty());
    let counts = |route: &KeyRoute<'_>| route.meter.is_some_and(|meter| meter.counts(measure));
    if routes.any(|route| may_use(&route) && counts(&route)) {
        return None;
    }
    let whose = if granted.is_some() { "that the key's scopes allow" } else { "that takes a key" };
    Some(format!("would count nothing: no route {whose} has a meter that counts {measure}"))
}

impl RouteTable {
    /// Its routes that take a key.
    pub fn key_routes(&self) -> impl Iterator<Item = KeyRoute<'_>> {
        let routes = self.routes().iter().map(|route| &**route).filter(|route: &&Route| !route.public);
        routes.map(|route| KeyRoute { scopes: &route.scopes, meter: route.meter.as_ref() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::scope::check_granted;
    use crate::policy::meter::{JsonPointer, MeterSource, Missing, OnDisconnect, Unpriced};

    fn scopes(words: &[&str]) -> Scopes {
        Scopes::of(words.iter().copied(), check_granted).expect("scopes")
    }

    fn rule(source: MeterSource) -> MeterRule {
        MeterRule {
            source,
            missing: Missing::Zero,
            on_disconnect: OnDisconnect::Delivered,
            max_bytes: 1,
            hold: 1,
            clamp: false,
            unpriced: Unpriced::Admit,
            include_usage: false,
        }
    }

    #[test]
    fn a_limit_counts_where_a_route_that_the_key_may_use_meters_its_measure() {
        let (llm, units) = (
            rule(MeterSource::Llm),
            rule(MeterSource::Json(JsonPointer::parse("/units").expect("a pointer"))),
        );
        let (chat, jobs, plain) = (scopes(&["chat"]), scopes(&["jobs"]), scopes(&["app"]));
        let routes = [
            KeyRoute { scopes: &chat, meter: Some(&llm) },
            KeyRoute { scopes: &jobs, meter: Some(&units) },
            KeyRoute { scopes: &plain, meter: None },
        ];
        let why = |measure, granted: Option<&[&str]>| {
            why_uncounted(routes.iter().copied(), measure, granted.map(scopes).as_ref())
        };
        for measure in Measure::METERED {
            assert_eq!(why(measure, None), None);
            assert_eq!(why(measure, Some(&["chat", "app"])), None);
            assert_eq!(why(measure, Some(&["*"])), None);
            let told = format!(
                "would count nothing: no route that the key's scopes allow has a meter that counts {measure}"
            );
            assert_eq!(why(measure, Some(&["app"])), Some(told.clone()));
            // One number of an answer is neither input, nor output, nor a cost.
            let of_jobs = why(measure, Some(&["jobs"]));
            assert_eq!(of_jobs, (measure != Measure::Tokens).then_some(told));
        }
        assert_eq!(why(Measure::Requests, Some(&[])), None);
        assert_eq!(why_uncounted(std::iter::empty(), Measure::Cost, None), None, "nothing is known");
        let told = why_uncounted(routes[2..].iter().copied(), Measure::Cost, None);
        assert!(
            told.is_some_and(|why| why.contains("no route that takes a key has a meter that counts cost"))
        );
    }
}
