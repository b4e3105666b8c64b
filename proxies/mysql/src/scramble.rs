//! What proves to a server that a client knows the password, without telling it.

use sha1::{Digest, Sha1};
use sha2::Sha256;

/// `mysql_native_password`: SHA1(password) XOR SHA1(scramble, SHA1(SHA1(password))).
pub fn native(password: &[u8], scramble: &[u8]) -> Vec<u8> {
    if password.is_empty() {
        return vec![];
    }
    let hash = Sha1::digest(password);
    let mut outer = Sha1::new();
    outer.update(scramble);
    outer.update(Sha1::digest(hash));
    xor(&hash, &outer.finalize())
}

/// `caching_sha2_password`: SHA256(password) XOR SHA256(SHA256(SHA256(password)), scramble).
pub fn sha2(password: &[u8], scramble: &[u8]) -> Vec<u8> {
    if password.is_empty() {
        return vec![];
    }
    let hash = Sha256::digest(password);
    let mut outer = Sha256::new();
    outer.update(Sha256::digest(hash));
    outer.update(scramble);
    xor(&hash, &outer.finalize())
}

fn xor(a: &[u8], b: &[u8]) -> Vec<u8> {
    a.iter().zip(b).map(|(a, b)| a ^ b).collect()
}

/// The password for a server that has not cached it: encrypted with the server's own key, which it has sent as PEM. `seed` is random.
///
/// RSAES-OAEP with SHA-1 (RFC 8017, 7.1), over the password and its terminating zero, XORed with the scramble. `None` if the key is
/// none, or too short for the password.
pub fn rsa(password: &[u8], scramble: &[u8], pem: &str, seed: [u8; HASH]) -> Option<Vec<u8>> {
    let (modulus, exponent) = public_key(pem)?;
    let mut message = password.to_vec();
    message.push(0);
    for (byte, mask) in message.iter_mut().zip(scramble.iter().cycle()) {
        *byte ^= mask;
    }
    let len = modulus.len();
    let padding = len.checked_sub(2 * HASH + 2 + message.len())?;
    // lHash of the empty label, zeros, a one, the message.
    let mut block = Sha1::digest(b"").to_vec();
    block.resize(HASH + padding, 0);
    block.push(1);
    block.extend(message);
    let mask = mgf1(&seed, block.len());
    let block = xor(&block, &mask);
    let seed = xor(&seed, &mgf1(&block, HASH));
    let encoded = [&[0][..], &seed, &block].concat();
    Some(power(&encoded, &exponent, &modulus))
}

/// A SHA-1 hash in bytes.
pub const HASH: usize = 20;

/// RFC 8017, B.2.1.
fn mgf1(seed: &[u8], len: usize) -> Vec<u8> {
    let mut out = vec![];
    for counter in 0u32.. {
        if out.len() >= len {
            break;
        }
        let mut hash = Sha1::new();
        hash.update(seed);
        hash.update(counter.to_be_bytes());
        out.extend(hash.finalize());
    }
    out.truncate(len);
    out
}

/// The modulus and the exponent of a SubjectPublicKeyInfo (RFC 5280, RFC 8017 A.1.1), big-endian, without leading zeros.
fn public_key(pem: &str) -> Option<(Vec<u8>, Vec<u8>)> {
    let body = pem.split("-----BEGIN PUBLIC KEY-----").nth(1)?;
    let der = base64(body.split("-----END").next()?)?;
    let (info, _) = der_value(&der, 0x30)?;
    let (_algorithm, rest) = der_value(info, 0x30)?;
    let (bits, _) = der_value(rest, 0x03)?;
    let (key, _) = der_value(bits.strip_prefix(&[0])?, 0x30)?;
    let (modulus, rest) = der_value(key, 0x02)?;
    let (exponent, _) = der_value(rest, 0x02)?;
    let bare = |n: &[u8]| {
        n.iter()
            .copied()
            .skip_while(|b| *b == 0)
            .collect::<Vec<u8>>()
    };
    // Longer keys than any server makes are not worth the time.
    (modulus.len() <= 1 + 8192 / 8).then(|| (bare(modulus), bare(exponent)))
}

/// The contents of the value at the front, whose tag is given, and what follows it.
fn der_value(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, first], rest) = der.split_first_chunk::<2>()?;
    if found != tag {
        return None;
    }
    let (len, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 | 0x82 => {
            let (len, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (len.iter().fold(0, |n, b| n << 8 | usize::from(*b)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(len)
}

fn base64(text: &str) -> Option<Vec<u8>> {
    let (mut out, mut bits, mut n) = (vec![], 0u32, 0);
    for c in text
        .bytes()
        .filter(|c| !c.is_ascii_whitespace() && *c != b'=')
    {
        let six = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(six);
        n += 6;
        if n >= 8 {
            n -= 8;
            out.push((bits >> n) as u8);
        }
    }
    Some(out)
}

/// base^exponent mod modulus, all big-endian. Public values only: its time depends on them.
fn power(base: &[u8], exponent: &[u8], modulus: &[u8]) -> Vec<u8> {
    let limbs = modulus.len().div_ceil(4) + 1;
    let number = |bytes: &[u8]| {
        let mut out = vec![0u32; limbs];
        for (i, byte) in bytes.iter().rev().enumerate() {
            out[i / 4] |= u32::from(*byte) << (8 * (i % 4));
        }
        out
    };
    let (base, modulus_n) = (number(base), number(modulus));
    let mut result = number(&[1]);
    for byte in exponent {
        for bit in (0..8).rev() {
            result = times(&result, &result, &modulus_n);
            if byte >> bit & 1 == 1 {
                result = times(&result, &base, &modulus_n);
            }
        }
    }
    let byte = |i: usize| (result[i / 4] >> (8 * (i % 4))) as u8;
    (0..modulus.len()).rev().map(byte).collect()
}

/// a·b mod m by doubling and adding; a limb more than m needs leaves room for the carry.
fn times(a: &[u32], b: &[u32], m: &[u32]) -> Vec<u32> {
    let mut out = vec![0u32; m.len()];
    for limb in a.iter().rev() {
        for bit in (0..32).rev() {
            let doubled = out.clone();
            add(&mut out, &doubled, m);
            if limb >> bit & 1 == 1 {
                add(&mut out, b, m);
            }
        }
    }
    out
}

/// a + b mod m, both less than m.
fn add(a: &mut [u32], b: &[u32], m: &[u32]) {
    let mut carry = 0u64;
    for (a, b) in a.iter_mut().zip(b) {
        carry += u64::from(*a) + u64::from(*b);
        *a = carry as u32;
        carry >>= 32;
    }
    if a.iter().rev().ge(m.iter().rev()) {
        let mut borrow = 0i64;
        for (a, m) in a.iter_mut().zip(m) {
            borrow += i64::from(*a) - i64::from(*m);
            *a = borrow as u32;
            borrow >>= 32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn passwords_are_scrambled_as_servers_expect() {
        let scramble: Vec<u8> = (1..=20).collect();
        // What PyMySQL's _auth.scramble_native_password and scramble_caching_sha2 give for the same.
        assert_eq!(
            hex(&native(b"secret", &scramble)),
            "b32bb3a583e1340c0a1108d58b1be49781ad8c2f"
        );
        assert_eq!(
            hex(&sha2(b"secret", &scramble)),
            "746ebe205d56a0707acb3e796e834e0dd7b1d61743b26bd5202c7a623230c7c9"
        );
        assert!(native(b"", &scramble).is_empty() && sha2(b"", &scramble).is_empty());
    }

    #[test]
    fn powers() {
        // 4^13 mod 497 is 445; a larger one by Python's pow.
        assert_eq!(power(&[4], &[13], &[1, 0xf1]), [1, 0xbd]);
        let (base, modulus) = ([0x12; 16], [0xef; 17]);
        assert_eq!(
            hex(&power(&base, &[1, 0, 1], &modulus)),
            "11ba891ea851a2a2b4bd8bcb7959ee1149"
        );
    }

    #[test]
    fn a_key_that_is_none_is_refused() {
        for pem in [
            "",
            "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
        ] {
            assert_eq!(rsa(b"secret", &[1; 20], pem, [0; HASH]), None);
        }
    }
}
