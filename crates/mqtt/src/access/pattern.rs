//! Topic patterns: filters with `%u` and `%c` in them.

use std::fmt;

/// What `%u` and `%c` stand for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Values<'a> {
    pub(super) user: Option<&'a str>,
    pub(super) client_id: &'a str,
}

/// A filter with `%u` and `%c` in its levels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern(Box<[Level]>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Level {
    /// Text, without a placeholder.
    Plain(Box<str>),
    /// Text with placeholders.
    Mixed(Box<[Piece]>),
    /// `+`
    One,
    /// `#`
    Rest,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(Box<str>),
    User,
    Client,
}

/// A level once the values are known.
#[derive(Clone, Copy)]
enum Known<'a> {
    Text(&'a str),
    Pieces(&'a [Piece]),
    One,
    Rest,
    /// With a value that cannot be part of a topic level.
    Unusable,
}

impl Piece {
    fn text<'a>(&'a self, values: Values<'a>) -> Option<&'a str> {
        match self {
            Self::Text(text) => Some(text),
            Self::User => values.user.filter(|value| usable(value)),
            Self::Client => Some(values.client_id).filter(|value| usable(value)),
        }
    }
}

/// Whether a value can stand for a part of one topic level and no more. A `+` or `#` would be a wildcard
/// (CVE-2017-7650), a `/` another level, a `$` in front the server's topics; nothing at all is nobody's.
fn usable(value: &str) -> bool {
    !value.is_empty() && !value.starts_with('$') && !value.contains(['+', '#', '/', '\0'])
}

impl Level {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "+" => return Ok(Self::One),
            "#" => return Ok(Self::Rest),
            _ if text.contains(['+', '#']) => {
                return Err(format!("'+' and '#' must be a whole level, as in 'a/+/b/#', not '{text}'"));
            }
            _ => {}
        }
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut chars = text.chars();
        while let Some(char) = chars.next() {
            if char != '%' {
                plain.push(char);
                continue;
            }
            let value = match chars.next() {
                Some('%') => {
                    plain.push('%');
                    continue;
                }
                Some('u') => Piece::User,
                Some('c') => Piece::Client,
                _ => return Err(format!("'%' in '{text}' must be %u, %c, or %% for itself")),
            };
            if !plain.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut plain).into()));
            }
            pieces.push(value);
        }
        if pieces.is_empty() {
            return Ok(Self::Plain(plain.into()));
        }
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain.into()));
        }
        Ok(Self::Mixed(pieces.into()))
    }

    fn known<'a>(&'a self, values: Values<'a>) -> Known<'a> {
        match self {
            Self::Plain(text) => Known::Text(text),
            Self::Mixed(pieces) if pieces.iter().any(|piece| piece.text(values).is_none()) => Known::Unusable,
            Self::Mixed(pieces) => Known::Pieces(pieces),
            Self::One => Known::One,
            Self::Rest => Known::Rest,
        }
    }
}

impl Known<'_> {
    fn is_wildcard(self) -> bool {
        matches!(self, Self::One | Self::Rest)
    }

    fn is(self, level: &str, values: Values<'_>) -> bool {
        match self {
            Self::Text(text) => text == level,
            Self::Pieces(pieces) => {
                let rest =
                    pieces.iter().try_fold(level, |rest, piece| rest.strip_prefix(piece.text(values)?));
                rest == Some("")
            }
            Self::One | Self::Rest | Self::Unusable => false,
        }
    }
}

impl Pattern {
    /// Reads a filter. The error says how to write it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("a topic filter is missing, as in 'allow publish sensors/#'".to_owned());
        }
        if text.contains(|char: char| char.is_control()) {
            return Err("a topic filter must not have control characters in it".to_owned());
        }
        if matches!(text.split('/').next(), Some("$share" | "$queue")) {
            return Err(
                "write the filter alone: a '$share/GROUP/' or '$queue/' in front of it is not looked at"
                    .to_owned(),
            );
        }
        let levels: Vec<_> = text.split('/').map(Level::parse).collect::<Result<_, _>>()?;
        if levels.iter().rev().skip(1).any(|level| *level == Level::Rest) {
            return Err(format!("'#' must be the last level, not inside of '{text}'"));
        }
        Ok(Self(levels.into()))
    }

    /// The pattern as a filter, if it has no placeholders.
    pub(super) fn filter(&self) -> Option<String> {
        let level = |level: &Level| match level {
            Level::Plain(text) => Some(text.to_string()),
            Level::Mixed(_) => None,
            Level::One => Some("+".to_owned()),
            Level::Rest => Some("#".to_owned()),
        };
        Some(self.0.iter().map(level).collect::<Option<Vec<_>>>()?.join("/"))
    }

    /// Whether every topic that matches `filter` matches the pattern. A topic name is the filter of itself. A value that
    /// is not usable makes it match nothing.
    pub(super) fn covers(&self, filter: &str, values: Values<'_>) -> bool {
        let mut own = self.0.iter().map(|level| level.known(values)).peekable();
        // Wildcards in front do not match a `$`. [MQTT-4.7.2-1]
        if filter.starts_with('$') && own.peek().is_some_and(|level| level.is_wildcard()) {
            return false;
        }
        // Every topic has a first level, so `+/#` matches whatever `#` matches.
        if filter == "#" && self.0.iter().eq(&[Level::One, Level::Rest]) {
            return true;
        }
        let mut levels = filter.split('/');
        for own in own {
            match (own, levels.next()) {
                // `sport/#` matches `sport` too.
                (Known::Rest, _) => return true,
                (Known::Unusable, _) | (_, None | Some("#")) => return false,
                (Known::One, Some(_)) => {}
                (text, Some(level)) if level != "+" && text.is(level, values) => {}
                _ => return false,
            }
        }
        levels.next().is_none()
    }

    /// Whether some topic matches both `filter` and the pattern. A value that is not usable stands for all topics from
    /// its level on: what is denied to `%c` must not be had under an odd client id.
    pub(super) fn overlaps(&self, filter: &str, values: Values<'_>) -> bool {
        let mut own = self.0.iter().map(|level| level.known(values)).peekable();
        let dollar = |text: &Known<'_>| match text {
            Known::Text(text) => text.starts_with('$'),
            Known::Pieces([Piece::Text(text), ..]) => text.starts_with('$'),
            _ => false,
        };
        if filter.starts_with('$') && own.peek().is_some_and(|level| level.is_wildcard())
            || filter.starts_with(['+', '#']) && own.peek().is_some_and(dollar)
        {
            return false;
        }
        let mut levels = filter.split('/');
        for own in own {
            match (own, levels.next()) {
                (Known::Rest | Known::Unusable, _) | (_, Some("#")) => return true,
                (_, None) => return false,
                (Known::One, Some(_)) | (_, Some("+")) => {}
                (text, Some(level)) if text.is(level, values) => {}
                _ => return false,
            }
        }
        matches!(levels.next(), None | Some("#"))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, level) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str("/")?;
            }
            match level {
                Level::Plain(text) => f.write_str(&text.replace('%', "%%"))?,
                Level::One => f.write_str("+")?,
                Level::Rest => f.write_str("#")?,
                Level::Mixed(pieces) => {
                    for piece in pieces {
                        match piece {
                            Piece::Text(text) => f.write_str(&text.replace('%', "%%"))?,
                            Piece::User => f.write_str("%u")?,
                            Piece::Client => f.write_str("%c")?,
                        }
                    }
                }
            }
        }
        Ok(())
    }
}
