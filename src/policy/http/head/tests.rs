//! Valid heads and refused ones.

use super::*;

fn checked(head: &str) -> Result<Framing, BadHead> {
    check(head.as_bytes(), 100).map(|sound| sound.framing)
}

#[test]
fn known_parts_of_a_refused_head_are_reported() {
    for (head, method, path, languages) in [
        (
            "GET /a/../b?key=secret HTTP/1.1\r\nAccept-Language: zh-CN, en;q=0.5\r\n\r\n",
            "GET",
            "/a/../b",
            "zh-CN, en;q=0.5",
        ),
        ("GET /a HTTP/1.1\r\nhost: h\r\nACCEPT-LANGUAGE:zh\r\nbad line\r\n\r\n", "GET", "/a", "zh"),
        ("GET http://h/a?b HTTP/1.1\r\n\r\n", "GET", "/a", ""),
        ("GET http://user:pass@h/a HTTP/1.1\r\n\r\n", "GET", "", ""),
        ("GET /a\u{1b}[31m HTTP/1.1\r\n\r\n", "GET", "/a", ""),
        ("sk-secret\r\n\r\n", "", "", ""),
        ("CONNECT h:443 HTTP/1.1\r\n\r\n", "CONNECT", "", ""),
        // Incomplete: more may come in any field.
        ("GET /a HTTP/1.1\r\nAccept-Language: zh\r\n", "GET", "/a", ""),
        ("\u{16}\u{3}\u{1} /x", "", "", ""),
        ("", "", "", ""),
    ] {
        assert_eq!(read_partial(head.as_bytes()), PartialHead { method, path, languages }, "{head:?}");
    }
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(9_000));
    assert_eq!(read_partial(long.as_bytes()).path.len(), PATH_SHOWN);
}

#[test]
fn a_valid_head_has_exactly_one_body_framing() {
    let good = "GET /a?b=c HTTP/1.1\r\nHost: h:80\r\nX-A:\t a b \u{e9}\r\nEmpty:\r\n\r\n";
    assert_eq!(checked(good), Ok(Framing::NoBody));
    assert_eq!(checked("GET / HTTP/1.0\r\n\r\n"), Ok(Framing::NoBody));
    assert_eq!(checked("POST / HTTP/1.1\r\nhost: h\r\nCONTENT-LENGTH: 12\r\n\r\n"), Ok(Framing::Length(12)));
    let chunked = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n";
    assert_eq!(checked(chunked), Ok(Framing::Chunked));
    assert_eq!(checked("GET http://h/x HTTP/1.1\r\nHost: h\r\n\r\n"), Ok(Framing::NoBody));
}

#[test]
fn a_sound_head_comes_apart() {
    let head = b"GET /a?b HTTP/1.1\r\nHost: h\r\nA:\t b: c \r\nEmpty:\r\n\r\nx: y\r\n";
    let whole = split_head(head).expect("a head");
    assert_eq!((whole.method, whole.target, whole.is_11), (&b"GET"[..], &b"/a?b"[..], true));
    let fields: Vec<_> = whole.fields().collect();
    assert_eq!(fields, [(&b"Host"[..], &b"h"[..]), (b"A", b"b: c"), (b"Empty", b"")]);
    let old = split_head(b"PUT / HTTP/1.0\r\n\r\n").map(|o| (o.method, o.is_11, o.fields().count()));
    assert_eq!(old, Some((&b"PUT"[..], false, 0)));
    assert_eq!(split_head(b"GET"), None);
}

#[test]
fn a_malformed_head_is_refused_with_its_own_error() {
    let with = |field: &str| checked(&format!("POST / HTTP/1.1\r\nHost: h\r\n{field}\r\n\r\n"));
    for (field, expected) in [
        ("Content-Length: 1\r\nContent-Length: 1", BadHead::Framing),
        ("Content-Length: 01", BadHead::Framing),
        ("Content-Length: +1", BadHead::Framing),
        ("Content-Length: 1, 1", BadHead::Framing),
        ("Content-Length:", BadHead::Framing),
        ("Content-Length: 9999999999999999999", BadHead::Framing),
        ("Content-Length: 1\r\nTransfer-Encoding: chunked", BadHead::Framing),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", BadHead::Framing),
        ("Transfer-Encoding: gzip, chunked", BadHead::Coding),
        ("Transfer-Encoding:", BadHead::Coding),
        ("Host: h", BadHead::Host),
        ("Connection: host", BadHead::Connection),
        ("A : b", BadHead::Syntax),
        (" A: b", BadHead::Syntax),
        ("A: b\r\n c", BadHead::Syntax),
        ("A: b\nC: d", BadHead::Syntax),
        ("A: b\rC: d", BadHead::Syntax),
        ("A: b\0", BadHead::Syntax),
        ("A: 0123456\u{7f}", BadHead::Syntax),
        ("A", BadHead::Syntax),
        (": b", BadHead::Syntax),
        ("A\u{e9}: b", BadHead::Syntax),
    ] {
        assert_eq!(with(field), Err(expected), "{field:?}");
    }
    assert_eq!(checked("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), Err(BadHead::Framing));
    assert_eq!(checked("GET / HTTP/1.1\r\n\r\n"), Err(BadHead::Host));
    assert_eq!(checked("GET http://h/ HTTP/1.0\r\n\r\n"), Err(BadHead::Host));
    assert_eq!(check(b"GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n\r\n", 1), Err(BadHead::Fields));
}

#[test]
fn the_request_line_has_three_parts_and_single_spaces() {
    for line in [
        "",
        "GET",
        "GET /",
        "GET / ",
        "GET  / HTTP/1.1",
        "GET /  HTTP/1.1",
        "GET / HTTP/1.1 ",
        " GET / HTTP/1.1",
        "GET / HTTP/1.2",
        "GET / HTTP/2.0",
        "GET / HTTP/0.9",
        "GET / http/1.1",
        "GET\t/ HTTP/1.1",
        "G(T / HTTP/1.1",
        "GET /a b HTTP/1.1",
        "GET / HTTP/1.10",
    ] {
        assert_eq!(checked(&format!("{line}\r\nHost: h\r\n\r\n")), Err(BadHead::Syntax), "{line:?}");
    }
    for (target, bad) in [
        ("/#x", BadPath::Character(b'#')),
        ("/?#x", BadPath::QueryCharacter(b'#')),
        ("/|\\", BadPath::Character(b'\\')),
        ("/\u{e9}?a#", BadPath::QueryCharacter(b'#')),
        ("*", BadPath::NotAbsolute),
        ("h:80", BadPath::NotAbsolute),
        ("ftp://h/", BadPath::NotAbsolute),
        ("http://u@h/", BadPath::NotAbsolute),
    ] {
        let head = format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!(checked(&head), Err(BadHead::Target(bad)), "{target}");
    }
}

#[test]
fn unescaped_bytes_of_targets_are_found_where_they_can_be_escaped() {
    let loose = |target: &[u8]| {
        let head = [b"GET ".as_slice(), target, b" HTTP/1.1\r\nHost: h\r\n\r\n"].concat();
        check(&head, 100).map(|sound| sound.is_loose)
    };
    for plain in ["/", "/a%7C?b[c]=|^`{}", "http://h/a"] {
        assert_eq!(loose(plain.as_bytes()), Ok(false), "{plain}");
    }
    for written in ["/a|b", "/[x]", "/^", "/`", "/{x}", "/<\">", "/文", "/?q=文", "/?\"<>", "http://h/|"] {
        assert_eq!(loose(written.as_bytes()), Ok(true), "{written}");
    }
    assert_eq!(loose(b"/\xe9"), Err(BadHead::Target(BadPath::Character(0xe9))));
    assert_eq!(loose(b"/?\xff"), Err(BadHead::Target(BadPath::QueryCharacter(0xff))));
}

#[test]
fn connection_may_name_up_to_nine_fields_but_none_that_decides() {
    let with = |fields: &str| checked(&format!("GET / HTTP/1.1\r\nHost: h\r\n{fields}\r\n"));
    let nine = "Connection: a, b,,c , d\r\nconnection: e,f,g,h,i,\r\n";
    for good in ["Connection: keep-alive, Upgrade\r\n", "Connection:\r\n", nine] {
        assert_eq!(with(good), Ok(Framing::NoBody), "{good:?}");
    }
    for bad in ["Host", "x-Forwarded-FOR", "close, X-Forwarded-Proto", "\"x\"", "close, x y", ":path"] {
        assert_eq!(with(&format!("Connection: {bad}\r\n")), Err(BadHead::Connection), "{bad:?}");
    }
    assert_eq!(with(&format!("{nine}Connection: j\r\n")), Err(BadHead::Connection));
}

/// Every valid host is also accepted by the parser of authorities.
#[test]
fn valid_host_values_are_accepted_and_others_refused() {
    for host in ["h", "h:80", "h:", "a-b.c_d~e:65535", "[::1]", "[2001:db8::1]:443", "127.0.0.1:1"] {
        assert!(is_host(host.as_bytes()) && host.parse::<http::uri::Authority>().is_ok(), "{host}");
    }
    for host in [
        "",
        ":80",
        "[",
        "[]",
        "[]:80",
        "[::1",
        "[g::]",
        "[::1]80",
        "::1",
        "a:b",
        "a:b:c",
        "a:1:2",
        "h:123456",
        "h:8a",
        "h/",
        "u@h",
        "a b",
        "h%41",
        "[::1%25eth0]",
        "\u{e9}",
    ] {
        assert!(!is_host(host.as_bytes()), "{host}");
    }
}

#[test]
fn a_field_value_with_a_control_character_is_refused_wherever_it_stands() {
    for byte in 0..=255_u8 {
        let wrong = byte == 0x7f || (byte < b' ' && byte != b'\t');
        for at in 0..20 {
            let mut value = [b'a'; 20];
            value[at] = byte;
            assert_eq!(is_value(&value), !wrong, "{byte:#x} at {at}");
        }
    }
}

#[test]
fn the_end_is_found_however_the_bytes_come() {
    let head = b"GET / HTTP/1.1\r\nHost: h\r\n\r\nbody\r\n\r\n";
    let end = head.len() - 8;
    for first in 0..head.len() {
        let found = find_end(&head[..first], 0).or_else(|| find_end(head, first));
        assert_eq!(found, Some(end), "{first}");
    }
    for hopeless in [b"GET / HTTP/1.1\n".as_slice(), b"\r\nGET", b"\nGET", b"\x16\x03\x01"] {
        assert!(is_malformed_prefix(hopeless, 0), "{hopeless:?}");
    }
    let hopeful = b"GET / HTTP/1.1\r\nHost: h\r";
    assert!((0..hopeful.len()).all(|searched| !is_malformed_prefix(hopeful, searched)));
}
