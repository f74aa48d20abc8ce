//! A table of spellings, and properties of every spelling.

use super::BadPath::*;
use super::*;
use proptest::prelude::*;

/// A path, and its canonical spelling or the reason for refusal.
const SPELLINGS: &[(&str, Result<&str, BadPath>)] = &[
    // Canonical already.
    ("/", Ok("/")),
    ("/v1/app/a1/chat", Ok("/v1/app/a1/chat")),
    ("/v1/app/", Ok("/v1/app/")),
    ("/-._~", Ok("/-._~")),
    ("/!$&'()*+,;=:@", Ok("/!$&'()*+,;=:@")),
    ("/models/x:generate", Ok("/models/x:generate")),
    ("/a;v=1/b", Ok("/a;v=1/b")),
    ("/...", Ok("/...")),
    ("/.well-known/x", Ok("/.well-known/x")),
    ("/..a/.b", Ok("/..a/.b")),
    ("/a./b..", Ok("/a./b..")),
    ("/a%20b", Ok("/a%20b")),
    ("/%E6%96%87", Ok("/%E6%96%87")),
    ("/%3A", Ok("/%3A")),
    ("/%C0%AE", Ok("/%C0%AE")),
    ("/100%25", Ok("/100%25")),
    ("/%2520", Ok("/%2520")),
    // Unnecessary or lower-case escapes are normalised.
    ("/%61dmin", Ok("/admin")),
    ("/%41%5A%7A%30", Ok("/AZz0")),
    ("/%7euser", Ok("/~user")),
    ("/%7Euser", Ok("/~user")),
    ("/%2D%5f", Ok("/-_")),
    ("/a%2ehtml", Ok("/a.html")),
    ("/%2ewell-known", Ok("/.well-known")),
    ("/%2e%2e%2e", Ok("/...")),
    ("/a%3ab", Ok("/a%3Ab")),
    ("/%e6%96%87", Ok("/%E6%96%87")),
    ("/%3fq", Ok("/%3Fq")),
    ("/%3b", Ok("/%3B")),
    ("/%23", Ok("/%23")),
    // Not a path.
    ("", Err(NotAbsolute)),
    ("admin", Err(NotAbsolute)),
    ("*", Err(NotAbsolute)),
    ("http://gw//admin", Err(NotAbsolute)),
    ("%2fadmin", Err(NotAbsolute)),
    ("\\admin", Err(NotAbsolute)),
    // Bytes that are not allowed.
    ("/a b", Err(Character(0x20))),
    ("/a\tb", Err(Character(0x09))),
    ("/a\0b", Err(Character(0x00))),
    ("/a\r\nX: y", Err(Character(0x0d))),
    ("/a\x7f", Err(Character(0x7f))),
    ("/a\\b", Err(Character(b'\\'))),
    ("/..\\admin", Err(Character(b'\\'))),
    ("/a?q", Err(Character(b'?'))),
    ("/a#f", Err(Character(b'#'))),
    ("/文", Err(Character(0xe6))),
    ("/\"", Err(Character(b'"'))),
    ("/<x>", Err(Character(b'<'))),
    ("/^", Err(Character(b'^'))),
    ("/`", Err(Character(b'`'))),
    ("/{x}", Err(Character(b'{'))),
    ("/a|b", Err(Character(b'|'))),
    ("/[x]", Err(Character(b'['))),
    // Invalid escapes.
    ("/%", Err(Escape)),
    ("/%4", Err(Escape)),
    ("/%/1", Err(Escape)),
    ("/%zz", Err(Escape)),
    ("/%u002e", Err(Escape)),
    ("/%+1", Err(Escape)),
    ("/%25%", Err(Escape)),
    // Escapes of characters with a structural meaning.
    ("/a%2fb", Ok("/a%2Fb")),
    ("/x/..%2fadmin", Err(DotSegment)),
    ("/a%2Fb", Ok("/a%2Fb")),
    ("/a%5cb", Err(ForbiddenEscape(0x5c))),
    ("/a%00", Err(ForbiddenEscape(0x00))),
    ("/a%0d%0aX:y", Err(ForbiddenEscape(0x0d))),
    ("/a%1F", Err(ForbiddenEscape(0x1f))),
    ("/a%7f", Err(ForbiddenEscape(0x7f))),
    // An escaped slash stays where it is, and cannot hide a dot segment.
    ("/a%2f%2Fb", Ok("/a%2F%2Fb")),
    ("/a%2F", Ok("/a%2F")),
    ("/a%2F..", Err(DotSegment)),
    ("/a%2f.%2fb", Err(DotSegment)),
    ("/a/%2e%2e%2fb", Err(DotSegment)),
    ("/a%2F..;x%2Fb", Err(DotSegment)),
    ("/%2Fa", Err(EmptySegment)),
    ("/a/%2fb", Err(EmptySegment)),
    ("/a%2F/b", Err(EmptySegment)),
    // Escaped escapes, also those that show only after one decoding.
    ("/%252e%252e/admin", Err(DoubleEncoding)),
    ("/%252E", Err(DoubleEncoding)),
    ("/%252fadmin", Err(DoubleEncoding)),
    ("/%255c", Err(DoubleEncoding)),
    ("/%25252e", Err(DoubleEncoding)),
    ("/%25%32%65", Err(DoubleEncoding)),
    ("/%252%46", Err(DoubleEncoding)),
    ("/%25%32f", Err(DoubleEncoding)),
    // Dot segments in every spelling.
    ("/.", Err(DotSegment)),
    ("/..", Err(DotSegment)),
    ("/../", Err(DotSegment)),
    ("/a/../raw", Err(DotSegment)),
    ("/a/./b", Err(DotSegment)),
    ("/a/..", Err(DotSegment)),
    ("/%2e", Err(DotSegment)),
    ("/x/%2e%2e/admin", Err(DotSegment)),
    ("/x/%2E%2E", Err(DotSegment)),
    ("/x/.%2e/admin", Err(DotSegment)),
    ("/x/%2e./admin", Err(DotSegment)),
    ("/public/..;/admin", Err(DotSegment)),
    ("/public/..;x=1/admin", Err(DotSegment)),
    ("/.;/admin", Err(DotSegment)),
    ("/%2e%2e;x/admin", Err(DotSegment)),
    ("/..%3bx/admin", Err(DotSegment)),
    // Consecutive slashes.
    ("//", Err(EmptySegment)),
    ("//admin", Err(EmptySegment)),
    ("/a//b", Err(EmptySegment)),
    ("/a//", Err(EmptySegment)),
    ("///", Err(EmptySegment)),
];

#[test]
fn every_spelling_has_one_meaning_or_none() {
    for (raw, expected) in SPELLINGS {
        let got = canonical(raw.as_bytes());
        assert_eq!(got.as_ref().map(CanonicalPath::as_str).map_err(|e| *e), *expected, "{raw:?}");
        if let Ok(path) = got {
            assert_eq!(path.was_respelled(), path.as_str() != *raw, "{raw:?}");
        }
    }
    assert_eq!(canonical(b"/\xff").err(), Some(Character(0xff)));
}

#[test]
fn a_query_is_left_alone_unless_it_could_end_the_request() {
    for fine in ["", "a=b", "a=%zz&b=/../?{}|\"<>", "q=%00"] {
        assert_eq!(check_query(fine.as_bytes()), Ok(()), "{fine:?}");
    }
    for (bad, byte) in [
        ("a b", b' '),
        ("a\t", b'\t'),
        ("a\r\nX: y", b'\r'),
        ("a\0", 0),
        ("a\x7f", 0x7f),
        ("文", 0xe6),
        ("a#b", b'#'),
    ] {
        assert_eq!(check_query(bad.as_bytes()), Err(QueryCharacter(byte)), "{bad:?}");
    }
}

#[test]
fn unescaped_bytes_of_targets_are_escaped_where_unambiguous() {
    for (target, escaped) in [
        ("/a|b", "/a%7Cb"),
        ("/[x]^`{y}", "/%5Bx%5D%5E%60%7By%7D"),
        ("/\"<a>", "/%22%3Ca%3E"),
        ("/文?q=文&a[0]={|}^`", "/%E6%96%87?q=%E6%96%87&a[0]={|}^`"),
        ("/?\"<>", "/?%22%3C%3E"),
        ("http://[::1]/a|", "http://[::1]/a%7C"),
        ("/a%7c|", "/a%7c%7C"),
    ] {
        assert_eq!(escape_loose(target.as_bytes()).as_deref(), Some(escaped.as_bytes()), "{target}");
    }
    for plain in ["/a%7C", "/", "", "*", "/?a[]", "ftp://h/|"] {
        assert_eq!(escape_loose(plain.as_bytes()), None, "{plain}");
    }
    assert_eq!(escape_loose(b"/|\xff"), None);
}

#[test]
fn errors_name_the_character() {
    for (bad, told) in [
        (Character(b'#'), "the path has the character `#`, which must be percent-encoded"),
        (Character(b'\\'), "the path has the character `\\`, which some servers take for a slash"),
        (Character(1), "the path has the character 0x01, which is a control character"),
        (
            QueryCharacter(0xff),
            "the query has the character 0xFF, which is not UTF-8; it must be percent-encoded",
        ),
        (ForbiddenEscape(0x5c), "the path has the escape %5C, of a backslash or control character"),
    ] {
        assert_eq!(bad.to_string(), told);
    }
}

#[test]
fn a_segment_decodes_to_text_or_not_at_all() {
    for (segment, text) in [
        ("", Some("")),
        ("app-1", Some("app-1")),
        ("a%20b", Some("a b")),
        ("%E6%96%87", Some("文")),
        ("%e6%96%87", Some("文")),
        ("100%25", Some("100%")),
        ("%252e", Some("%2e")),
        ("文%20", Some("文 ")),
        ("%", None),
        ("a%4", None),
        ("%zz", None),
        ("%FF", None),
        ("%C0%AE", None),
    ] {
        assert_eq!(decode_segment(segment).as_deref(), text, "{segment}");
    }
}

/// Strings that look like paths: mostly meaningful pieces, sometimes any byte.
fn raw_path() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        6 => proptest::sample::select(&[
            "/", "/", "a", "B7", ".", "..", ";x", "%2e", "%2E", "%2f", "%25", "%61", "%7e", "%3b", "%3A", "%c3%a9",
            "%20", "%", "2e", "2", ":", "~", "%32", "%65", "%00",
        ][..]).prop_map(|text| text.as_bytes().to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 1..3),
    ];
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| {
        let mut path = b"/".to_vec();
        path.extend(pieces.concat());
        path
    })
}

/// Paths that are mostly accepted, to test the properties of the results.
fn likely_path() -> impl Strategy<Value = Vec<u8>> {
    "(/([A-Za-z0-9~:;._-]|%[2-7][0-9A-Fa-f]|%[A-Fa-f][0-9A-Fa-f]){1,6}){1,4}/?".prop_map(String::into_bytes)
}

fn decoded(path: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut at = 0;
    while at < path.len() {
        if path[at] == b'%' {
            let digits = std::str::from_utf8(&path[at + 1..at + 3]).unwrap();
            bytes.push(u8::from_str_radix(digits, 16).unwrap());
            at += 3;
        } else {
            bytes.push(path[at]);
            at += 1;
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn output_paths_are_canonical(raw in prop_oneof![raw_path(), likely_path()]) {
        let Ok(path) = canonical(&raw) else { return Ok(()) };
        let again = canonical(path.as_bytes());
        prop_assert_eq!(again.as_ref().map(CanonicalPath::as_str), Ok(path.as_str()));
        prop_assert!(again.is_ok_and(|p| !p.was_respelled()));
        prop_assert_eq!(decoded(&raw), decoded(path.as_bytes()), "the same bytes are meant");

        prop_assert!(path.starts_with('/') && !path.contains("//"));
        prop_assert!(path.split('/').all(|s| !matches!(s.split(';').next(), Some("." | ".."))));
        prop_assert!(path.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@%/".contains(&b)));
        for (at, _) in path.match_indices('%') {
            prop_assert!(path[at + 1..at + 3].bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F')));
        }
    }

    #[test]
    fn whole_escapes_and_plain_bytes_are_refused_only_for_what_they_mean(raw in likely_path()) {
        // The generator writes only complete escapes and allowed bytes.
        let refused = canonical(&raw).err();
        prop_assert!(!matches!(refused, Some(NotAbsolute | Character(_) | Escape)), "{:?}", refused);
    }

    #[test]
    fn a_decoded_segment_is_what_its_bytes_say(segment in "([a-z文]|%[0-9A-Fa-f]{2}){0,8}") {
        let expected = String::from_utf8(decoded(segment.as_bytes())).ok();
        prop_assert_eq!(decode_segment(&segment).map(Cow::into_owned), expected);
    }
}

#[test]
fn targets_are_split_and_only_those_with_a_path_are_taken() {
    let no = Err(BadPath::NotAbsolute);
    for (raw, expected) in [
        ("/", Ok(("/", ""))),
        ("/a?b=c?d", Ok(("/a", "b=c?d"))),
        ("/a?", Ok(("/a", ""))),
        ("http://h/a?b", Ok(("/a", "b"))),
        ("HTTPS://h:8080//a", Ok(("//a", ""))),
        ("http://[::1]:80", Ok(("/", ""))),
        ("http://h?a", no),
        ("http:///a", no),
        ("http://u@h/a", no),
        ("http://h%2f/a", no),
        ("http://h\\@x/a", no),
        ("ftp://h/a", no),
        ("http:/a", no),
        ("h:80", no),
        ("a/b", no),
        ("*", no),
        ("", no),
    ] {
        let bytes = expected.map(|(p, q): (&str, &str)| (p.as_bytes(), q.as_bytes()));
        assert_eq!(split_target(raw.as_bytes()), bytes, "{raw}");
    }
}
