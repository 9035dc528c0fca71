//! What a stream holds, told from its first bytes and, where they can be seen, its last ones.
//!
//! Only for streams of which the client did not say what they are: a guest can write anything into its own disk, so an image in
//! an SR is never looked at like this. What is recognised and cannot be imported is named, with what a user would look for next.

/// How many bytes of the beginning are looked at, if there are so many.
pub(crate) const HEAD_BYTES: usize = 64 << 10;
/// How many bytes of the end are looked at.
pub(crate) const END_BYTES: usize = 512;

/// What a stream seems to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing that is known: the bytes of a disk.
    Raw,
    /// A VHD, whole or not.
    Vhd,
    /// Something else, as a sentence calls it.
    Other(String),
}

/// Formats that are known by bytes at a place, and what they are called.
const SIGNS: &[(usize, &[u8], &str)] = &[
    (0, b"QFI\xfb\x00\x00\x00\x01", "a qcow image (version 1)"),
    (0, b"KDMV", "a VMDK image (sparse extent)"),
    (0, b"COWD", "a VMDK image (old sparse extent)"),
    (0, b"vhdxfile", "a VHDX image"),
    (0x40, b"\x7f\x10\xda\xbe", "a VDI image of VirtualBox"),
    (0, b"QED\0", "a QED image"),
    (0, b"WithoutFreeSpace", "a Parallels image"),
    (0, b"WithouFreSpacExt", "a Parallels image"),
    (0, b"LUKS\xba\xbe", "a disk encrypted with LUKS"),
    (0, b"\x1f\x8b\x08", "a file compressed with gzip"),
    (0, b"\xfd7zXZ\0", "a file compressed with xz"),
    (0, b"\x28\xb5\x2f\xfd", "a file compressed with zstd"),
    (0, b"\x04\x22\x4d\x18", "a file compressed with lz4"),
    (0, b"PK\x03\x04", "a zip archive"),
];

/// What a stream with this beginning and this end holds. `end` is empty where it cannot be seen.
pub(crate) fn recognise(head: &[u8], end: &[u8]) -> Found {
    let cookie = b"conectix";
    // A footer of 512 bytes, or the 511 that Virtual PC once wrote.
    let at_end = [512, 511].iter().filter_map(|len| end.get(end.len().checked_sub(*len)?..));
    if head.starts_with(cookie) || at_end.into_iter().any(|footer| footer.starts_with(cookie)) {
        return Found::Vhd;
    }
    if head.starts_with(b"QFI\xfb") && number(head, 4, 4).is_some_and(|version| version >= 2) {
        return Found::Other(qcow2(head));
    }
    if let Some((_, _, name)) = SIGNS.iter().find(|(at, sign, _)| bytes(head, *at, sign.len()) == Some(sign))
    {
        return Found::Other((*name).to_owned());
    }
    if is_bzip2(head) {
        return Found::Other("a file compressed with bzip2".to_owned());
    }
    if head.trim_ascii_start().starts_with(b"# Disk DescriptorFile") {
        return Found::Other("a VMDK descriptor, whose data are in other files".to_owned());
    }
    if bytes(head, 257, 5) == Some(b"ustar")
        && head[..100].split(|byte| *byte == 0).next().is_some_and(is_ovf)
    {
        return Found::Other("an OVA archive".to_owned());
    }
    Found::Raw
}

fn is_bzip2(head: &[u8]) -> bool {
    head.starts_with(b"BZh") && bytes(head, 4, 6) == Some(b"1AY&SY")
}

fn is_ovf(name: &[u8]) -> bool {
    name.to_ascii_lowercase().ends_with(b".ovf")
}

/// A qcow2 image, with everything that would be missing if its bytes alone were converted.
fn qcow2(head: &[u8]) -> String {
    let version = number(head, 4, 4).unwrap_or_default();
    let mut text = format!("a qcow2 image (version {version})");
    let mut with = Vec::new();
    let backing = (number(head, 8, 8).unwrap_or_default(), number(head, 16, 4).unwrap_or_default());
    if backing.0 != 0 {
        with.push(format!("the backing file {}", name_at(head, backing.0, backing.1)));
    }
    let features = if version >= 3 { number(head, 72, 8).unwrap_or_default() } else { 0 };
    if features & 4 != 0 {
        with.push(format!("the external data file {}", data_file(head)));
    }
    match number(head, 32, 4) {
        Some(1) => with.push("AES encryption".to_owned()),
        Some(2) => with.push("LUKS encryption".to_owned()),
        Some(method) if method != 0 => with.push(format!("encryption method {method}")),
        _ => {}
    }
    // Dirty, corrupt, external data file, compression type, extended L2 entries.
    let unknown = features & !0b1_1111;
    if unknown != 0 {
        with.push(format!("unknown incompatible features {unknown:#x}"));
    }
    if !with.is_empty() {
        text.push_str(" with ");
        text.push_str(&with.join(", "));
    }
    text
}

/// The name of an external data file, from the extensions of the header.
fn data_file(head: &[u8]) -> String {
    const DATA_FILE: u64 = 0x4441_5441;
    let mut at = number(head, 100, 4).unwrap_or_default();
    while let Ok(next) = usize::try_from(at) {
        let (Some(kind), Some(length)) = (number(head, next, 4), number(head, next.saturating_add(4), 4))
        else {
            break;
        };
        if kind == DATA_FILE {
            return name_at(head, at + 8, length);
        }
        if kind == 0 {
            break;
        }
        at += 8 + length.next_multiple_of(8);
    }
    "of unknown name".to_owned()
}

/// A name in an image, in quotes, harmless to print.
fn name_at(head: &[u8], at: u64, length: u64) -> String {
    let place = usize::try_from(at).ok().zip(usize::try_from(length).ok().filter(|length| *length < 1024));
    match place.and_then(|(at, length)| bytes(head, at, length)) {
        Some(name) => format!("'{}'", String::from_utf8_lossy(name).escape_debug()),
        None => "of unknown name".to_owned(),
    }
}

fn bytes(head: &[u8], at: usize, length: usize) -> Option<&[u8]> {
    head.get(at..at.checked_add(length)?)
}

/// A big-endian number of up to eight bytes.
fn number(head: &[u8], at: usize, length: usize) -> Option<u64> {
    Some(bytes(head, at, length)?.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(head: &[u8]) -> String {
        match recognise(head, &[]) {
            Found::Other(name) => name,
            other => format!("{other:?}"),
        }
    }

    /// A header of version 3 with these fields set: position, bytes.
    fn qcow2_with(fields: &[(usize, &[u8])]) -> Vec<u8> {
        let mut head = vec![0; 4096];
        head[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        head[103] = 104;
        for (at, field) in fields {
            head[*at..*at + field.len()].copy_from_slice(field);
        }
        head
    }

    #[test]
    fn each_format_is_named() {
        for (at, sign, name) in SIGNS {
            let mut head = vec![0; *at];
            head.extend_from_slice(sign);
            assert_eq!(found(&head), *name);
            head.pop();
            assert_eq!(found(&head), "Raw", "not quite {name}");
        }
        assert_eq!(found(b"BZh91AY&SYrest"), "a file compressed with bzip2");
        assert!(found(b"# Disk DescriptorFile\nversion=1\n").starts_with("a VMDK descriptor"));
        let mut ova = b"appliance.OVF".to_vec();
        ova.resize(257, 0);
        ova.extend(b"ustar");
        assert_eq!(found(&ova), "an OVA archive");
        assert_eq!(found(b"conectix"), "Vhd");
        assert_eq!(found(b""), "Raw");
        assert_eq!(found(&[0; 600]), "Raw");
    }

    #[test]
    fn a_footer_at_the_end_outweighs_a_beginning_of_another_kind() {
        let mut end = [0; 512];
        end[..8].copy_from_slice(b"conectix");
        assert_eq!(recognise(b"KDMV", &end), Found::Vhd);
        let mut end = [0; 512];
        end[1..9].copy_from_slice(b"conectix");
        assert_eq!(recognise(b"KDMV", &end), Found::Vhd);
    }

    #[test]
    fn what_a_qcow2_image_needs_besides_itself_is_named() {
        assert_eq!(found(&qcow2_with(&[])), "a qcow2 image (version 3)");
        let backing =
            qcow2_with(&[(8, &300u64.to_be_bytes()), (16, &8u32.to_be_bytes()), (300, b"base.img")]);
        assert_eq!(found(&backing), "a qcow2 image (version 3) with the backing file 'base.img'");
        let far = qcow2_with(&[(8, &u64::MAX.to_be_bytes()), (16, &u32::MAX.to_be_bytes())]);
        assert_eq!(found(&far), "a qcow2 image (version 3) with the backing file of unknown name");
        let data = qcow2_with(&[
            (79, &[4]),
            (104, &0xE279_2ACAu32.to_be_bytes()),
            (108, &5u32.to_be_bytes()),
            (112, b"qcow2\0\0\0"),
            (120, &0x4441_5441u32.to_be_bytes()),
            (124, &8u32.to_be_bytes()),
            (128, b"disk.raw"),
        ]);
        assert_eq!(found(&data), "a qcow2 image (version 3) with the external data file 'disk.raw'");
        let strange = qcow2_with(&[(32, &2u32.to_be_bytes()), (72, &0x8000_0000_0000_0001u64.to_be_bytes())]);
        assert_eq!(
            found(&strange),
            "a qcow2 image (version 3) with LUKS encryption, unknown incompatible features 0x8000000000000000"
        );
    }

    proptest! {
        #[test]
        fn nothing_is_too_strange_to_look_at(mut head in proptest::collection::vec(any::<u8>(), 0..600), magic: bool) {
            if magic && head.len() > 8 {
                head[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
            }
            recognise(&head, &[]);
        }
    }
}
