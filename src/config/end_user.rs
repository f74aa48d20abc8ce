//! `end_user` of a route: where its requests name their end user.

use super::raw_value::RawValue;
use super::rule::{ValueRule, quote, refusal};
use super::texts::{header, is_name};
use crate::policy::routing::route::EndUserFrom;

/// Most sources of the end user.
const END_USERS_MAX: usize = 8;

/// Where a route takes its end user from.
#[derive(PartialEq)]
pub(super) enum EndUserChoice {
    /// From the header of `[proxy]`.
    AsProxy,
    /// Elsewhere.
    Own(EndUserFrom),
}

/// One source of the end user, several in order, or `none`.
pub(super) struct EndUserSources;

impl ValueRule for EndUserSources {
    type Value = Vec<EndUserChoice>;

    fn must(&self) -> String {
        r#""header" (that of [proxy]), "header:NAME", "query:NAME", "body:FIELD" with a field of a JSON body, a list of these with at most one body, or "none""#
            .into()
    }

    fn read(&self, given: RawValue<'_>) -> Result<Vec<EndUserChoice>, String> {
        if given.text() == Some("none") {
            return Ok(Vec::new());
        }
        let items = if given.text().is_some() { vec![given] } else { given.items().unwrap_or_default() };
        let sources: Option<Vec<_>> = items.into_iter().map(|item| item.text().and_then(end_user)).collect();
        let is_sound = |sources: &Vec<EndUserChoice>| {
            let in_body =
                |source: &&EndUserChoice| matches!(source, EndUserChoice::Own(EndUserFrom::JsonField(_)));
            (1..=END_USERS_MAX).contains(&sources.len())
                && sources.iter().filter(in_body).count() <= 1
                && (1..sources.len()).all(|n| !sources[..n].contains(&sources[n]))
        };
        sources.filter(is_sound).ok_or_else(|| refusal(self))
    }

    fn show(&self, sources: &Vec<EndUserChoice>) -> String {
        let all: Vec<String> = sources.iter().map(show_end_user).collect();
        match &all[..] {
            [] => quote(&"none"),
            [one] => one.clone(),
            several => format!("[{}]", several.join(", ")),
        }
    }
}

fn end_user(text: &str) -> Option<EndUserChoice> {
    let source = match text.split_once(':') {
        None if text == "header" => return Some(EndUserChoice::AsProxy),
        Some(("header", name)) => EndUserFrom::Header(header(name)?),
        Some(("query", name)) if is_name(name) => EndUserFrom::Query(name.into()),
        Some(("body", field)) if is_name(field) => EndUserFrom::JsonField(field.into()),
        _ => return None,
    };
    Some(EndUserChoice::Own(source))
}

fn show_end_user(choice: &EndUserChoice) -> String {
    match choice {
        EndUserChoice::AsProxy => quote(&"header"),
        EndUserChoice::Own(EndUserFrom::Header(name)) => quote(&format_args!("header:{name}")),
        EndUserChoice::Own(EndUserFrom::Query(name)) => quote(&format_args!("query:{name}")),
        EndUserChoice::Own(EndUserFrom::JsonField(field)) => quote(&format_args!("body:{field}")),
    }
}
