//! Pages of other origins: preflights are answered here, and every answer is marked for the browser.
//!
//! Must not know: keys. A preflight carries none, costs nothing and never reaches a backend.

use super::ctx::Ctx;
use super::headers::X_REQUEST_ID;
use super::service::Proxy;
use crate::policy::cors::Preflight;
use crate::policy::path::canonical;
use http::header::{ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN};
use http::{HeaderMap, Method, StatusCode};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;

impl Proxy {
    /// Answers the request if it is a preflight to a route that has rules for pages of other origins.
    pub(super) async fn preflight(&self, session: &mut Session, ctx: &mut Ctx) -> pingora::Result<bool> {
        if session.req_header().method != Method::OPTIONS {
            return Ok(false);
        }
        let Some(answer) = Self::preflight_answer(session, ctx) else { return Ok(false) };
        let mut parts = http::Response::new(()).into_parts().0;
        parts.status = StatusCode::NO_CONTENT;
        parts.headers = answer;
        parts.headers.insert(X_REQUEST_ID, ctx.request_id.clone());
        super::reply::keep_open_if_possible(session);
        session.write_response_header(Box::new(ResponseHeader::from(parts)), true).await?;
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
