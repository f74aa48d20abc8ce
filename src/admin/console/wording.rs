//! What the API says about mistakes in a form, in Chinese.
//!
//! The API names mistakes for programs and people in English. What has no translation here is shown as it is.

/// Sentences of the API, with `{}` for what differs, and the same in Chinese.
const SENTENCES: &[(&str, &str)] = &[
    ("must be a whole number from {} to {}", "必须是 {} 到 {} 之间的整数"),
    ("must be 1 to {} characters, without control characters", "必须为 1 到 {} 个字符，且不含控制字符"),
    ("must be at most {} characters, without NUL", "最多 {} 个字符，且不含 NUL"),
    (
        "must be 1 to {} printable characters, without white space around them",
        "必须为 1 到 {} 个可打印字符，首尾不能有空白",
    ),
    ("must be 1 to {} visible ASCII characters", "必须为 1 到 {} 个可见的 ASCII 字符"),
    ("must be text", "必须是文本"),
    ("must be true or false", "必须是 true 或 false"),
    ("must be one of: {}", "必须是以下之一：{}"),
    (
        "must be a list of scopes, as in {}; [] grants nothing",
        "必须是权限范围列表，例如 {}；[] 表示不授予任何权限",
    ),
    ("must be a list of addresses and networks, as in {}", "必须是地址和网段的列表，例如 {}"),
    ("must be an address or a network, as in {}", "必须是地址或网段，例如 {}"),
    ("must be at most {} addresses and networks", "最多 {} 个地址和网段"),
    ("has bits set behind its prefix; did you mean {}?", "前缀之后还有非零位；是否应为 {}？"),
    ("must be a list of {}", "必须是 {} 的列表"),
    ("must be at most {} limits", "最多 {} 个限额"),
    ("there already is a limit of {} per {}", "已有 {}（每 {}）的限额"),
    ("must be an object {}", "必须是对象 {}"),
    ("must be an object", "必须是对象"),
    ("must have at most {} entries", "最多 {} 个条目"),
    ("must be at most {} bytes of JSON", "JSON 最多 {} 字节"),
    ("must not hold NUL characters", "不能含有 NUL 字符"),
    ("must be in the future", "必须是将来的时间"),
    (
        "must be epoch seconds, epoch milliseconds or RFC 3339, from the year 1970 to the year 9999",
        "必须是秒或毫秒时间戳，或 RFC 3339 格式，年份在 1970 到 9999 之间",
    ),
    ("is too large", "过大"),
    (
        "is required for a key of type {}; an empty list grants nothing",
        "{} 类型的密钥必须填写；空列表表示不授予任何权限",
    ),
    ("is required for a key of type {}", "{} 类型的密钥必须填写"),
    (
        "must be the workspace ({}) for a service key, or absent",
        "service 类型的密钥必须填写工作空间（{}）或留空",
    ),
    ("a key of type {} must hold the scope {}", "{} 类型的密钥必须拥有权限范围 {}"),
    ("is required", "必须填写"),
    ("cannot be null; leave it out to keep it as it is", "不能为 null；如需保持不变，请省略"),
    ("cannot be changed", "不能修改"),
    ("is not known here; did you mean {}?", "未知字段；是否应为 {}？"),
    ("is not known here", "未知字段"),
    (
        "would count nothing: no route that the key's scopes allow has a meter that counts {}",
        "不会计量：密钥权限范围内的路由都没有统计 {} 的计量器",
    ),
    (
        "would count nothing: no route that takes a key has a meter that counts {}",
        "不会计量：需要密钥的路由都没有统计 {} 的计量器",
    ),
];

/// `said` in Chinese, if it is one of the sentences.
pub(super) fn in_chinese(said: &str) -> Option<String> {
    SENTENCES.iter().find_map(|(english, chinese)| {
        let parts = parts(english, said)?;
        let mut text = String::new();
        let mut parts = parts.into_iter();
        for (place, piece) in chinese.split("{}").enumerate() {
            if place > 0 {
                text.push_str(parts.next().unwrap_or_default());
            }
            text.push_str(piece);
        }
        Some(text)
    })
}

/// What stands for each `{}`, if `said` is that sentence.
fn parts<'s>(sentence: &str, said: &'s str) -> Option<Vec<&'s str>> {
    let mut pieces = sentence.split("{}");
    let mut rest = said.strip_prefix(pieces.next()?)?;
    let mut found = Vec::new();
    let mut pieces = pieces.peekable();
    while let Some(piece) = pieces.next() {
        let at = if pieces.peek().is_none() {
            rest.len()
                .checked_sub(piece.len())
                .filter(|at| rest.is_char_boundary(*at) && rest[*at..] == *piece)?
        } else {
            rest.find(piece)?
        };
        found.push(&rest[..at]);
        rest = &rest[at + piece.len()..];
    }
    rest.is_empty().then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_are_translated_with_what_differs_in_them() {
        for (english, chinese) in [
            ("must be a whole number from 1 to 5", "必须是 1 到 5 之间的整数"),
            ("there already is a limit of tokens per day", "已有 tokens（每 day）的限额"),
            ("is required", "必须填写"),
            ("is required for a key of type app", "app 类型的密钥必须填写"),
        ] {
            assert_eq!(in_chinese(english).as_deref(), Some(chinese));
        }
        for unknown in ["", "is", "is required, too", "must be a whole number from 1", "x is required"] {
            assert_eq!(in_chinese(unknown), None, "{unknown}");
        }
        for (english, chinese) in SENTENCES {
            assert_eq!(english.matches("{}").count(), chinese.matches("{}").count(), "{english}");
        }
    }

    #[test]
    fn every_mistake_of_a_form_has_its_sentence() {
        // The rules of what forms send: each literal that begins as a mistake does.
        let sources = [
            include_str!("../input/rules.rs"),
            include_str!("../input/key.rs"),
            include_str!("../input/plan.rs"),
            include_str!("../input/fields.rs"),
            include_str!("../input/instant.rs"),
        ];
        let mut seen = 0;
        for source in sources {
            let code = source.split("#[cfg(test)]").next().expect("a part before the tests");
            for literal in literals(code) {
                let begins = ["must ", "is ", "has ", "cannot ", "there already", "a key of type"];
                if !begins.iter().any(|begin| literal.starts_with(begin)) {
                    continue;
                }
                let mut said = String::new();
                let mut rest = &*literal;
                while let Some((before, after)) = rest.split_once('{') {
                    let (name, behind) = after.split_once('}').expect("a whole placeholder");
                    said.push_str(before);
                    said.push_str(if name.contains(", ") { "{a, b}" } else { "7" });
                    rest = behind;
                }
                said.push_str(rest);
                assert!(in_chinese(&said).is_some(), "no Chinese for: {literal}");
                seen += 1;
            }
        }
        assert!(seen > 25, "{seen}");
    }

    /// The texts in quotes of a source without comments in the middle of lines.
    fn literals(code: &str) -> Vec<String> {
        let mut found = Vec::new();
        for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
            let (mut text, mut is_inside, mut is_escaped) = (String::new(), false, false);
            for letter in line.chars() {
                match letter {
                    _ if is_escaped => {
                        text.push(letter);
                        is_escaped = false;
                    }
                    '\\' if is_inside => is_escaped = true,
                    '"' if is_inside => {
                        found.push(std::mem::take(&mut text));
                        is_inside = false;
                    }
                    '"' => is_inside = true,
                    _ if is_inside => text.push(letter),
                    _ => {}
                }
            }
        }
        found
    }
}
