//! The meter of a route: accepted and rejected values.

use super::{parse, told};
use keygate::policy::meter::{MeterRule, MeterSource, Missing, OnDisconnect};

/// One route with these further lines, of which the first is the eighth of the file.
fn route(more: &str) -> String {
    let upstream = "[[upstreams]]\nname = \"a\"\nservers = [\"h:1\"]\n";
    format!("{upstream}[[routes]]\npath = \"/v1/x\"\nupstream = \"a\"\nscopes = []\n{more}\n")
}

fn read(more: &str) -> Option<MeterRule> {
    parse(&route(more)).expect("it loads").routes.remove(0).meter
}

#[test]
fn a_route_says_how_it_is_metered() {
    assert_eq!(read(""), None);
    assert_eq!(read("meter = \"\"\nmeter_max_bytes = \"1MiB\""), None);
    let llm = read("meter = \"llm\"").expect("a meter");
    assert_eq!((llm.source, llm.missing, llm.max_bytes), (MeterSource::Llm, Missing::Estimate, 64 << 20));
    let zero = read("meter = \"llm\"\nmissing = \"zero\"\nmeter_max_bytes = \"1MiB\"").expect("a meter");
    assert_eq!((zero.missing, zero.max_bytes, zero.include_usage), (Missing::Zero, 1 << 20, true));
    assert!(!read("meter = \"llm\"\ninclude_usage = false").expect("a meter").include_usage);
    let hold = read("meter = \"llm\"\nmissing = \"hold\"").expect("a meter");
    assert_eq!(hold.missing, Missing::Hold);
    assert_eq!(hold.on_disconnect, OnDisconnect::Delivered);
    for (word, on_disconnect) in
        [("drain", OnDisconnect::Drain), ("delivered", OnDisconnect::Delivered), ("hold", OnDisconnect::Hold)]
    {
        let rule = read(&format!("meter = \"llm\"\non_disconnect = \"{word}\"")).expect("a meter");
        assert_eq!(rule.on_disconnect, on_disconnect);
    }
    let json = read("meter = \"json:/usage/0/a~1b\"").expect("a meter");
    assert!(matches!(&json.source, MeterSource::Json(pointer) if pointer.to_string() == "/usage/0/a~1b"));
    assert_eq!(json.missing, Missing::Zero);
    let header = read("meter = \"header:X-Tokens-Used\"\nmissing = \"zero\"").expect("a meter");
    assert!(matches!(&header.source, MeterSource::Header(name) if name == "x-tokens-used"));
}

#[test]
fn each_mistake_of_a_meter_is_told() {
    let meter = "must be \"llm\" (answers of language models), \"json:/PATH\" (a number in a JSON answer, such as \"json:/usage/units\") or \"header:NAME\" (a header of the answer), or \"\" for none";
    for (more, expected) in [
        ("meter = \"openai\"", format!("8:9 routes[0].meter: {meter}")),
        ("meter = \"json:usage\"", format!("8:9 routes[0].meter: {meter}")),
        ("meter = \"json:/a~2\"", format!("8:9 routes[0].meter: {meter}")),
        ("meter = \"header:a b\"", format!("8:9 routes[0].meter: {meter}")),
        (
            "meter = \"llm\"\nmissing = \"most\"",
            "9:11 routes[0].missing: must be one of: estimate, hold, zero, or \"\" for none".to_owned(),
        ),
        ("unpriced = \"refuse\"", "8:12 routes[0].unpriced: has no effect without meter".to_owned()),
        (
            "meter = \"json:/n\"\nunpriced = \"refuse\"",
            "9:12 routes[0].unpriced: must be \"admit\" unless meter is \"llm\": other requests name no model".to_owned(),
        ),
        ("missing = \"zero\"", "8:11 routes[0].missing: has no effect without meter".to_owned()),
        (
            "meter = \"json:/n\"\nmissing = \"estimate\"",
            "9:11 routes[0].missing: must be \"zero\" unless meter is \"llm\": nothing is known that an estimate could be made from".to_owned(),
        ),
        (
            "meter = \"header:X-Used\"\nmissing = \"hold\"",
            "9:11 routes[0].missing: must be \"zero\" unless meter is \"llm\": what other requests hold does not say what they use".to_owned(),
        ),
        ("on_disconnect = \"drain\"", "8:17 routes[0].on_disconnect: has no effect without meter".to_owned()),
        (
            "meter = \"llm\"\non_disconnect = \"cut\"",
            "9:17 routes[0].on_disconnect: must be one of: drain, delivered, hold, or \"\" for none".to_owned(),
        ),
        (
            "meter = \"json:/n\"\non_disconnect = \"hold\"",
            "9:17 routes[0].on_disconnect: must be \"delivered\" or \"drain\" unless meter is \"llm\": what other requests hold does not say what they use".to_owned(),
        ),
        ("missing = \"hold\"", "8:11 routes[0].missing: has no effect without meter".to_owned()),
        (
            "meter = \"json:/n\"\nclamp = true",
            "9:9 routes[0].clamp: has no effect unless meter is \"llm\": other requests name no maximum".to_owned(),
        ),
        (
            "meter = \"llm\"\nmeter_max_bytes = 10",
            "9:19 routes[0].meter_max_bytes: must be a number of bytes from 1KiB to 1TiB, plain or with a unit, such as \"32KiB\", \"1MiB\" or \"2GiB\"".to_owned(),
        ),
    ] {
        assert_eq!(told(parse(&route(more))), [expected], "{more}");
    }
}
