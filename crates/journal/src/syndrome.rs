//! CRC-32C run backwards: which change explains a checksum that does not match, and which salt explains one that should.

use crate::record;

const POLYNOMIAL: u32 = 0x82f6_3b78;

/// What one byte does to the state.
const FORWARD: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut state = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            state = (state >> 1) ^ (POLYNOMIAL & (state & 1).wrapping_neg());
            bit += 1;
        }
        table[byte] = state;
        byte += 1;
    }
    table
};

/// Which byte did it: the top bytes of [`FORWARD`] are all different.
const BACKWARD: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        table[(FORWARD[byte] >> 24) as usize] = byte as u8;
        byte += 1;
    }
    table
};

/// The state before `byte` was taken in.
fn before(state: u32, byte: u8) -> u32 {
    let index = BACKWARD[(state >> 24) as usize];
    ((state ^ FORWARD[index as usize]) << 8) | u32::from(index ^ byte)
}

/// True if `line` (without LF), whose checksum does not match, is a whole record but for one byte of its body or one digit of
/// its checksum. A write cut short leaves that by chance once in millions; a disk that forgets leaves exactly that.
pub(crate) fn one_byte_off(line: &[u8], salt: u32) -> bool {
    let Some((body, stored)) = record::split_tail(line) else { return false };
    let Some(stored) = stored else {
        // A digit that is none: the others decide.
        let digits = &line[line.len() - 10..line.len() - 2];
        let mut right = Vec::with_capacity(8);
        record::push_hex(&mut right, record::checksum(salt, body));
        return digits.iter().zip(&right).filter(|(a, b)| a != b).count() == 1;
    };
    let mut state = stored ^ record::checksum(salt, body);
    if state == 0 {
        return false;
    }
    if (0..8).any(|digit| state & !(0xF << (4 * digit)) == 0) {
        return true;
    }
    // The checksum is linear: a byte that differs leaves its difference, carried through as many zero bytes as follow it.
    body.iter().any(|_| {
        state = before(state, 0);
        state < 256
    })
}

/// The salt with which `line` (without LF) verifies; `None` if it does not end like a record.
pub(crate) fn salt_of(line: &[u8]) -> Option<u32> {
    let (body, stored) = record::split_tail(line)?;
    Some(!body.iter().rev().fold(!stored?, |state, byte| before(state, *byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(salt: u32) -> Vec<u8> {
        let mut out = Vec::new();
        let begin = record::start(&mut out, 17, 1_650_308_403_348, "mark", true);
        record::push_text_field(&mut out, "x", "some words, so that there is a body");
        record::finish(&mut out, begin, salt);
        out.pop();
        out
    }

    #[test]
    fn one_changed_byte_is_told_from_everything_else() {
        let whole = line(7);
        for at in (0..whole.len())
            .filter(|at| !(whole.len() - 16..whole.len() - 10).contains(at) && *at < whole.len() - 2)
        {
            for mask in 1..=255 {
                let mut bad = whole.clone();
                bad[at] ^= mask;
                assert!(one_byte_off(&bad, 7), "byte {at} ^ {mask}");
            }
        }
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..20_000 {
            let mut bad = whole.clone();
            let (a, b) = (rng.usize(..whole.len() - 16), rng.usize(..whole.len() - 16));
            if a.abs_diff(b) > 1 {
                bad[a] ^= rng.u8(1..);
                bad[b] ^= rng.u8(1..);
                assert!(!one_byte_off(&bad, 7), "two bytes");
            }
        }
        assert!(!one_byte_off(b"{}", 7));
        assert!(!one_byte_off(&whole[..whole.len() - 1], 7));
    }

    #[test]
    fn the_salt_of_a_record_is_found() {
        for salt in [0, 1, 0xdead_beef, u32::MAX] {
            assert_eq!(salt_of(&line(salt)), Some(salt));
        }
        assert_eq!(salt_of(b"{}"), None);
    }
}
