//! How the answers of a route are metered: these keys with their rules and defaults.

use super::reader::ConfigReader;
use super::rule::{ByteSize, Flag, Integer, OrEmpty, ParsedText, Word, quote};
use super::section::Section;
use super::texts::header;
use crate::model::key::CEILING_MAX;
use crate::policy::meter::{
    HOLD_DEFAULT, JsonPointer, MeterRule, MeterSource, Missing, OnDisconnect, Unpriced,
};

/// The parsed keys.
pub(super) struct MeterFile {
    source: Option<MeterSource>,
    missing: Option<Missing>,
    on_disconnect: Option<OnDisconnect>,
    max_bytes: u64,
    hold: u64,
    clamp: bool,
    unpriced: Option<Unpriced>,
    include_usage: bool,
}

const METER: ParsedText<MeterSource> = ParsedText {
    must: r#""llm" (answers of language models), "json:/PATH" (a number in a JSON answer, such as "json:/usage/units") or "header:NAME" (a header of the answer)"#,
    read: |text| match text.split_once(':') {
        None if text == "llm" => Some(MeterSource::Llm),
        Some(("json", pointer)) => JsonPointer::parse(pointer).map(MeterSource::Json),
        Some(("header", name)) => header(name).map(MeterSource::Header),
        _ => None,
    },
    show: |source| match source {
        MeterSource::Llm => quote(&"llm"),
        MeterSource::Json(pointer) => quote(&format_args!("json:{pointer}")),
        MeterSource::Header(name) => quote(&format_args!("header:{name}")),
    },
};

/// Reads them from a route.
pub(super) fn meter(s: &mut Section<'_, '_>) -> MeterFile {
    MeterFile {
        source: s.value("meter", &OrEmpty(METER), None),
        missing: s.value("missing", &OrEmpty(Word::new()), None),
        on_disconnect: s.value("on_disconnect", &OrEmpty(Word::new()), None),
        max_bytes: s.value("meter_max_bytes", &ByteSize { min: 1 << 10, max: 1 << 40 }, 64 << 20),
        hold: s.value("hold", &Integer { min: 1, max: CEILING_MAX }, HOLD_DEFAULT),
        clamp: s.value("clamp", &Flag, false),
        unpriced: s.value("unpriced", &OrEmpty(Word::new()), None),
        include_usage: s.value("include_usage", &Flag, true),
    }
}

/// The meter of the `n`-th route; none if it has none.
pub(super) fn checked_meter(n: usize, file: MeterFile, reading: &mut ConfigReader<'_>) -> Option<MeterRule> {
    let MeterFile { source, missing, on_disconnect, max_bytes, hold, clamp, unpriced, include_usage } = file;
    let path = |key: &str| format!("routes[{n}].{key}");
    let (meter_path, missing_path) = (path("meter"), path("missing"));
    let places = [missing_path.as_str(), meter_path.as_str()];
    let Some(source) = source else {
        if missing.is_some() && !reading.is_wrong(&meter_path) {
            reading.complain_of_conflict(&places, "has no effect without meter");
        }
        for (key, is_set) in [
            ("hold", hold != HOLD_DEFAULT),
            ("clamp", clamp),
            ("unpriced", unpriced == Some(Unpriced::Refuse)),
            ("on_disconnect", on_disconnect.is_some()),
        ] {
            let place = path(key);
            if is_set && !reading.is_wrong(&meter_path) {
                reading.complain_of_conflict(&[&place, &meter_path], "has no effect without meter");
            }
        }
        return None;
    };
    let is_llm = source == MeterSource::Llm;
    let why = match missing {
        Some(Missing::Estimate) => Some("nothing is known that an estimate could be made from"),
        Some(Missing::Hold) => Some("what other requests hold does not say what they use"),
        Some(Missing::Zero) | None => None,
    };
    if let Some(why) = why.filter(|_| !is_llm) {
        let message = format!("must be \"zero\" unless meter is \"llm\": {why}");
        reading.complain_of_conflict(&places, &message);
    }
    if on_disconnect == Some(OnDisconnect::Hold) && !is_llm {
        let message = "must be \"delivered\" or \"drain\" unless meter is \"llm\": what other requests hold does not say what they use";
        reading.complain_of_conflict(&[&path("on_disconnect"), &meter_path], message);
    }
    if clamp && !is_llm {
        let message = "has no effect unless meter is \"llm\": other requests name no maximum";
        reading.complain_of_conflict(&[&path("clamp"), &meter_path], message);
    }
    if unpriced == Some(Unpriced::Refuse) && !is_llm {
        let message = "must be \"admit\" unless meter is \"llm\": other requests name no model";
        reading.complain_of_conflict(&[&path("unpriced"), &meter_path], message);
    }
    let usual = if is_llm { Missing::Estimate } else { Missing::Zero };
    let (missing, unpriced) = (missing.unwrap_or(usual), unpriced.unwrap_or(Unpriced::Admit));
    // Cutting the backend off costs least; what it does for nobody must be asked for.
    let on_disconnect = on_disconnect.unwrap_or(OnDisconnect::Delivered);
    Some(MeterRule { source, missing, on_disconnect, max_bytes, hold, clamp, unpriced, include_usage })
}
