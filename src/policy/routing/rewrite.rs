//! The path for the backend, if a route rewrites it.
//!
//! Must not know: queries, hosts. A template consists of whole segments and never joins any, so the result is canonical
//! like its input.

use super::route::PathParams;
use crate::policy::http::path::{canonical, has_encoded_slash};

/// A path template with parameters of the route's pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite(Box<[RewriteSegment]>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum RewriteSegment {
    Literal(Box<str>),
    Param(Box<str>),
}

impl Rewrite {
    /// Parses a template such as `/internal/{id}/{rest}`, or returns what is wrong with it.
    pub fn parse(template: &str) -> Result<Self, String> {
        let Some(relative) = template.strip_prefix('/') else {
            return Err("the path must begin with /".to_owned());
        };
        let mut segments = Vec::new();
        let mut rest = relative.split('/').peekable();
        while let Some(segment) = rest.next() {
            segments.push(RewriteSegment::parse(segment, rest.peek().is_none())?);
        }
        Ok(Self(segments.into()))
    }

    /// The parameters of the template, each with whether it is the last segment.
    pub fn params(&self) -> impl Iterator<Item = (&str, bool)> {
        let last = self.0.len() - 1;
        self.0.iter().enumerate().filter_map(move |(n, segment)| match segment {
            RewriteSegment::Param(name) => Some((&**name, n == last)),
            RewriteSegment::Literal(_) => None,
        })
    }

    /// The path for these parameters.
    pub fn path(&self, params: &PathParams<'_, '_>) -> Box<str> {
        let mut path = String::new();
        for segment in &self.0 {
            path.push('/');
            path.push_str(match segment {
                RewriteSegment::Literal(text) => text,
                // The route table has checked that the parameter exists.
                RewriteSegment::Param(name) => params.get(name).unwrap_or_default(),
            });
        }
        path.into()
    }
}

impl RewriteSegment {
    fn parse(text: &str, is_last: bool) -> Result<Self, String> {
        if let Some(name) = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')) {
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                return Err(format!("`{text}`: the name of a parameter is made of letters, digits and _"));
            }
            return Ok(Self::Param(name.into()));
        }
        if text.contains(['{', '}']) {
            return Err(format!("`{text}`: a parameter is a whole segment, as in `{{id}}`"));
        }
        if text.is_empty() && !is_last {
            return Err("the path has two slashes in a row".to_owned());
        }
        match canonical(format!("/{text}").as_bytes()) {
            Ok(spelled) if spelled.was_respelled() => {
                Err(format!("`{text}` must be written `{}`", &spelled[1..]))
            }
            Ok(spelled) if has_encoded_slash(&spelled) => Err(format!("`{text}` has an encoded slash")),
            Ok(_) => Ok(Self::Literal(text.into())),
            Err(bad) => Err(format!("`{text}`: {bad}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_that_could_make_an_ambiguous_path_are_refused() {
        for (template, wrong) in [
            ("", "begin with /"),
            ("x", "begin with /"),
            ("/a//b", "two slashes"),
            ("/a/../b", ". or .. segment"),
            ("/x{id}", "a whole segment"),
            ("/{id}{rest}", "letters, digits"),
            ("/{}", "letters, digits"),
            ("/%61", "must be written `a`"),
            ("/a b", "percent-encoded"),
            ("/a?b", "percent-encoded"),
        ] {
            let refused = Rewrite::parse(template).expect_err(template);
            assert!(refused.contains(wrong), "{template}: {refused}");
        }
        for template in ["/", "/a/", "/{rest}", "/a/{id}/b/{rest}", "/a%20b/{x_1}"] {
            assert!(Rewrite::parse(template).is_ok(), "{template}");
        }
    }
}
