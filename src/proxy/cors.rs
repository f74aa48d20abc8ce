//! Pages of other origins: preflights are answered here, and every answer is marked for the browser.
//!
//! Must not know: keys. A preflight carries none, costs nothing and never reaches a backend.

use super::ctx::Ctx;
use super::service::Proxy;
use crate::policy::cors::{Cors, Fields, Preflight};
use crate::policy::path::canonical;
use http::header::{ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;

impl Proxy {
    /// Answers the request if it is a preflight to a route that has rules for pages of other origins.
    pub(super) async fn preflight(&self, session: &mut Session, ctx: &mut Ctx) -> pingora::Result<bool> {
        if session.req_header().method != Method::OPTIONS {
            return Ok(false);
        }
        let Some(answer) = Self::preflight_answer(session, ctx) else { return Ok(false) };
        let mut header = ResponseHeader::build(204, Some(8))?;
        for (name, value) in &answer {
            header.append_header(name.clone(), value)?;
        }
        header.insert_header("X-Request-Id", &ctx.request_id)?;
        super::reply::keep_open_if_possible(session);
        session.write_response_header(Box::new(header), true).await?;
        Ok(true)
    }

    fn preflight_answer(session: &Session, ctx: &mut Ctx) -> Option<HeaderMap> {
        let header = session.req_header();
        let (origin, method) =
            (header.headers.get(ORIGIN)?, header.headers.get(ACCESS_CONTROL_REQUEST_METHOD)?);
        let method: Method = method.to_str().ok()?.parse().ok()?;
        let path = header.uri.path();
        // What is not well formed is refused where everything is.
        canonical(path.as_bytes()).ok().filter(|p| !p.was_respelled())?;
        let route = ctx.site.routes.find(&method, path)?.route.clone();
        let asked = Preflight {
            origin,
            method: &method,
            headers: header.headers.get(ACCESS_CONTROL_REQUEST_HEADERS),
        };
        let answer = route.cors.as_ref()?.answer(&asked);
        ctx.route = Some(route);
        Some(answer)
    }
}

/// Marks an answer for the page that asked.
pub(super) fn mark(answer: &mut ResponseHeader, cors: &Cors, session: &Session) {
    cors.mark(answer, session.req_header().headers.get(ORIGIN));
}

/// Names and values that are HTTP's already cannot fail to be put in.
impl Fields for ResponseHeader {
    fn names_beginning(&self, front: &str) -> Vec<HeaderName> {
        self.headers.names_beginning(front)
    }

    fn remove(&mut self, name: &HeaderName) {
        self.remove_header(name);
    }

    fn set(&mut self, name: HeaderName, value: HeaderValue) {
        if let Err(error) = self.insert_header(name, value) {
            tracing::debug!(%error, "a field does not fit");
        }
    }

    fn add(&mut self, name: HeaderName, value: HeaderValue) {
        if let Err(error) = self.append_header(name, value) {
            tracing::debug!(%error, "a field does not fit");
        }
    }
}
