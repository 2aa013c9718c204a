//! The fuzz targets' functions on random requests and on damaged valid ones, a few thousand each.

use ringfort_engine::sim::Random;
use ringfort_frontend::virtiofs::fuzzing;

const ROUNDS: usize = 4000;

/// A request as Linux lays it out: length, opcode, unique, node, user, group, process, padding, body.
fn request(opcode: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = (40 + body.len() as u32).to_le_bytes().to_vec();
    bytes.extend(opcode.to_le_bytes());
    bytes.extend([1_u64, 1].map(u64::to_le_bytes).concat());
    bytes.extend([0_u32, 0, 5, 0].map(u32::to_le_bytes).concat());
    bytes.extend_from_slice(body);
    bytes
}

/// Numbers and names as bodies have them.
fn body(random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..random.below(12) {
        let number = match random.below(4) {
            0 => random.next_u64(),
            1 => u64::MAX - random.below(3),
            _ => random.below(70),
        };
        bytes.extend(number.to_le_bytes());
    }
    for _ in 0..random.below(3) {
        bytes.extend(
            [&b"user.name\0"[..], b"a\0", b"..\0", b"/\0", b"\0", b"target"][random.below(6) as usize],
        );
    }
    bytes
}

#[test]
fn requests() {
    let mut random = Random::new(1);
    fuzzing::request(&[]);
    for _ in 0..ROUNDS {
        let body = body(&mut random);
        let mut bytes = request(random.below(64) as u32, &body);
        if random.one_in(3) {
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] = random.next_u64() as u8;
        }
        if random.one_in(5) {
            bytes.truncate(random.below(bytes.len() as u64 + 1) as usize);
        }
        bytes.insert(0, random.next_u64() as u8);
        fuzzing::request(&bytes);
    }
}

#[test]
fn chains() {
    let mut random = Random::new(2);
    fuzzing::chain(&[]);
    for _ in 0..ROUNDS {
        let mut table = Vec::new();
        let count = 1 + random.below(6);
        for index in 0..count {
            let address = match random.below(8) {
                0 => random.next_u64(),
                1 => u64::MAX - random.below(100),
                _ => 0x1000 + random.below(1 << 18),
            };
            let len_bytes = match random.below(8) {
                0 => random.next_u64() as u32,
                1 => 0,
                _ => random.below(200) as u32,
            };
            let mut flags = u16::from(index + 1 < count);
            if random.one_in(12) {
                flags ^= 1;
            }
            if index * 2 >= count || random.one_in(12) {
                flags |= 2;
            }
            table.extend(address.to_le_bytes());
            table.extend(len_bytes.to_le_bytes());
            table.extend(flags.to_le_bytes());
            table.extend([0; 2]);
        }
        fuzzing::chain(&table);
    }
}
