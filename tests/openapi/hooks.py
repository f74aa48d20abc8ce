"""What the document says in words because JSON Schema cannot: data that is to be right keeps to it."""

import datetime
import ipaddress

import schemathesis
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode

FUTURE = "2100-01-01T00:00:00Z"


def rfc3339(at):
    return at.isoformat() + "Z"


# Instants from 1970 on, and networks without bits behind their prefix.
schemathesis.openapi.format("date-time", st.datetimes(datetime.datetime(1970, 1, 1), datetime.datetime(9998, 1, 1)).map(rfc3339))
schemathesis.openapi.format("time-zone", st.sampled_from(["UTC", "Asia/Shanghai", "Europe/Berlin", "America/New_York"]))
schemathesis.openapi.format("cidr", st.one_of(
    st.builds(lambda at, bits: str(ipaddress.ip_network((at, bits), strict=False)), st.integers(0, 2**32 - 1), st.integers(0, 32)),
    st.builds(lambda at, bits: str(ipaddress.ip_network((at, bits), strict=False)), st.integers(2**32, 2**128 - 1), st.integers(0, 128)),
))


@schemathesis.hook
def before_call(context, case, kwargs):
    if case.meta is not None and case.meta.generation.mode == GenerationMode.NEGATIVE:
        return
    # The workspace of the token: without it, every further call would be refused.
    if case.method.upper() == "DELETE" and case.path == "/workspaces/{id}" and case.path_parameters.get("id") == "default":
        case.path_parameters["id"] = "another"
    if isinstance(case.body, dict):
        settle_body(case.body)
        # The plan has no limit of a window, and grants end in the future.
        if case.path == "/workspaces/{id}/grants":
            case.body.update(limit="end_user_quota", until=FUTURE)
            case.body.pop("count", None)
            case.body.pop("per", None)
        # An upstream that there is, and neither a header of framing nor a workspace that does not exist.
        if case.path == "/upstreams/{name}/credentials":
            case.path_parameters["name"] = "nobody"
            case.body.pop("workspace_id", None)
            if case.body.get("header") is not None:
                case.body["header"] = "x-api-key"
        if case.path == "/apikeys/{id}" and isinstance(case.body.get("scopes"), list):
            settle_scopes(case.body["scopes"])
        # The rate of the plan that keys are held to.
        if case.method.upper() == "PUT" and case.path == "/plans/{id}" and "api_ops_rate_limit" in case.body:
            case.body["api_ops_rate_limit"] = 10_000_000
    if case.query:
        settle_query(case.path, case.query)


def settle_body(body):
    # In the future.
    if body.get("expires_at") is not None:
        body["expires_at"] = FUTURE
    # A plan that there is.
    if isinstance(body.get("plan_id"), str):
        body["plan_id"] = "default"
    # One for each model, with ascending tiers.
    if isinstance(body.get("prices"), list):
        body["prices"] = list({price["model"]: price for price in body["prices"]}.values())
        for price in body["prices"]:
            tiers = {tier["above"]: tier for tier in price.get("tiers") or []}
            price["tiers"] = [tiers[above] for above in sorted(tiers)]
    # One for each (count, per).
    if isinstance(body.get("limits"), list):
        body["limits"] = list({limit["per"]: limit for limit in body["limits"]}.values())


def settle_scopes(scopes):
    # Those that the key's type implies; which type that is, is not in the body.
    implied = ["app", "rag", "memory"]
    scopes[:] = implied + [scope for scope in scopes if scope not in implied][:64 - len(implied)]


def settle_query(path, query):
    # In order, and not too many points between them.
    for first, last in (("from", "to"), ("start_date", "end_date")):
        if first in query and (last in query or path.endswith("/usage")):
            del query[first]
    # Groups that are not of one resource, and the last 31 days of end users.
    if path == "/usage" and query.get("group_by") in ("end_user", "route", "model"):
        query.pop("resource_id", None)
        if query["group_by"] == "end_user":
            query.pop("from", None)
            query.pop("to", None)
    # By number, by cursor, or all of it.
    if "cursor" in query:
        query.pop("page", None)
    if query.get("format", "json") != "json":
        query.pop("page", None)
        query.pop("pagesize", None)
    if path.endswith("/logs") and "page" in query:
        query["page"] = 1
