//! `jsonlog:` URLs.

use super::error::{ClientError, ErrorKind};

/// The port of `jsonlog://HOST` without one.
pub const DEFAULT_PORT: u16 = 8000;

/// What a URL says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Address<'a> {
    pub(super) host: &'a str,
    pub(super) port: u16,
    pub(super) name: Option<String>,
    pub(super) token: Option<String>,
}

/// Reads `jsonlog://[NAME][:TOKEN][@]HOST[:PORT]`. Errors do not repeat the URL, which may hold a token.
pub(super) fn read(url: &str) -> Result<Address<'_>, ClientError> {
    let bad = |what: &str| {
        ClientError::new(
            ErrorKind::BadArgs,
            format!("bad URL: {what}; write jsonlog://[NAME:TOKEN@]HOST:PORT"),
        )
    };
    let rest = url.strip_prefix("jsonlog://").ok_or_else(|| bad("it does not start with jsonlog://"))?;
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains(['/', '?', '#']) {
        return Err(bad("nothing may follow the port"));
    }
    let (user, rest) = rest.rsplit_once('@').map_or((None, rest), |(user, rest)| (Some(user), rest));
    let (mut name, mut token) = (None, None);
    if let Some(user) = user {
        let (n, t) = user.split_once(':').map_or((user, None), |(n, t)| (n, Some(t)));
        let decode = |part: &str| percent_decode(part).ok_or_else(|| bad("a bad `%` escape"));
        name = Some(decode(n)?).filter(|n| !n.is_empty());
        token = t.map(decode).transpose()?;
    }
    let (host, port) = match rest.strip_prefix('[') {
        // An IPv6 address is written in brackets.
        Some(v6) => {
            let (host, port) = v6.split_once(']').ok_or_else(|| bad("`[` without `]`"))?;
            (
                host,
                if port.is_empty() {
                    None
                } else {
                    Some(port.strip_prefix(':').ok_or_else(|| bad("no port"))?)
                },
            )
        }
        None => match rest.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (rest, None),
        },
    };
    if host.is_empty() {
        return Err(bad("no host"));
    }
    let port = port.map_or(Ok(DEFAULT_PORT), |p| p.parse().map_err(|_| bad("the port is not a number")))?;
    Ok(Address { host, port, name, token })
}

fn percent_decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&b, tail)) = rest.split_first() {
        rest = tail;
        if b == b'%' {
            let hex = rest.get(..2).filter(|hex| hex.iter().all(u8::is_ascii_hexdigit))?;
            out.push(u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?);
            rest = &rest[2..];
        } else {
            out.push(b);
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let plain = |url| read(url).map(|a| (a.host, a.port)).unwrap();
        assert_eq!(plain("jsonlog://localhost:9000"), ("localhost", 9000));
        assert_eq!(plain("jsonlog://10.0.0.1/"), ("10.0.0.1", 8000));
        assert_eq!(plain("jsonlog://[::1]:7"), ("::1", 7));
        assert_eq!(plain("jsonlog://[::1]"), ("::1", 8000));
        let user = |url| read(url).map(|a| (a.name, a.token)).unwrap();
        assert_eq!(user("jsonlog://h"), (None, None));
        assert_eq!(user("jsonlog://billing@h"), (Some("billing".into()), None));
        assert_eq!(user("jsonlog://:a%40b%3a@h"), (None, Some("a@b:".into())));
        for bad in [
            "",
            "mqtt://x",
            "jsonlog://",
            "jsonlog://:8000",
            "jsonlog://x:70000",
            "jsonlog://x:",
            "jsonlog://x/y",
            "jsonlog://[::1",
            "jsonlog://:%zz@h",
            "jsonlog://:%ff@h",
            "jsonlog://a@",
        ] {
            assert_eq!(read(bad).unwrap_err().kind(), ErrorKind::BadArgs, "{bad:?}");
        }
        assert!(!read("jsonlog://:s3cret@h:x").unwrap_err().to_string().contains("s3cret"));
    }
}
