//! Pages of lists: parameters and responses.

use super::extract::{FromParams, QueryParams};
use crate::clock::Timestamp;
use crate::store::{Page, PageRequest};
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

/// The requested page of a list.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "says in the OpenAPI document what `page_request` reads")]
pub(super) struct PageParams {
    /// Number of the page, from 1.
    #[param(minimum = 1, default = 1)]
    page: Option<u32>,
    /// Items on a page.
    #[param(minimum = 1, maximum = 100, default = 10)]
    pagesize: Option<u32>,
}

/// The position of this page.
#[derive(Serialize, ToSchema)]
pub(super) struct PageView {
    /// Number of the page, from 1.
    page: u32,
    /// Items on a full page.
    pagesize: u32,
    /// Items on all pages.
    total: u64,
    /// Whether there are more.
    hasnext: bool,
}

/// One page of a list.
#[derive(Serialize, ToSchema)]
pub(super) struct Listed<T> {
    page: PageView,
    items: Vec<T>,
}

/// Most items on a page.
pub(super) const PAGESIZE_MAX: u32 = 100;
/// The default number of items on a page.
pub(super) const PAGESIZE_DEFAULT: u32 = 10;

/// Parses `page` and `pagesize`.
pub(super) fn page_request(params: &mut QueryParams) -> PageRequest {
    let page = params.whole("page", 1, u32::MAX).unwrap_or(1);
    let pagesize = params.whole("pagesize", 1, PAGESIZE_MAX).unwrap_or(PAGESIZE_DEFAULT);
    PageRequest { page, pagesize }
}

/// Milliseconds since the epoch, the format of every instant in responses.
pub(super) const fn millis(at: Timestamp) -> i64 {
    at.as_millis()
}

/// Microseconds as milliseconds with three decimals.
#[expect(clippy::cast_precision_loss, reason = "exact below 285 years")]
pub(super) fn fractional_millis(us: u64) -> f64 {
    us as f64 / 1_000.0
}

/// Refuses a `start` after `end`; `names` are the names of the parameters.
pub(super) fn in_order(
    params: &mut QueryParams,
    names: (&'static str, &'static str),
    start: Option<Timestamp>,
    end: Option<Timestamp>,
) {
    if let (Some(start), Some(end)) = (start, end)
        && start > end
    {
        params.refuse(names.0, format!("must not be after {}", names.1));
    }
}

impl FromParams for PageRequest {
    fn from_params(params: &mut QueryParams) -> Self {
        page_request(params)
    }
}

impl PageView {
    /// The view of the page `asked`, with `total` items on all pages.
    pub(super) fn new(asked: PageRequest, total: u64) -> Self {
        let PageRequest { page, pagesize } = asked;
        let hasnext = asked.offset().saturating_add(u64::from(pagesize)) < total;
        Self { page, pagesize, total, hasnext }
    }
}

impl<T> Listed<T> {
    /// The view of `page`, with each item converted by `show`.
    pub(super) fn new<R>(asked: PageRequest, page: Page<R>, show: impl FnMut(R) -> T) -> Self {
        Self { page: PageView::new(asked, page.total), items: page.items.into_iter().map(show).collect() }
    }
}
