//! Import, export, read and write: descriptors instead of paths, and no file that is not whole.

use super::{VDI, agent, failure, job, methods, run, text};
use catena_types::ErrorName;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{Read, Write};

#[test]
fn an_export_goes_into_a_new_file() {
    let dir = tempfile::tempdir().unwrap();
    let (agent, log) = agent(|call| {
        File::from(call.fds[0].try_clone().unwrap()).write_all(b"whole").unwrap();
        Ok(job("done", &json!({"bytes": 5})))
    });
    for (name, format) in [("a.raw", "raw"), ("a.VHD", "vhd"), ("a", "raw")] {
        let path = dir.path().join(name);
        assert_eq!(text(&agent, &format!("vdi export web01 {}", path.display())), "");
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        let asked = log.lock().unwrap().pop().unwrap();
        assert_eq!(asked, ("VDI.export".to_owned(), json!({"vdi": "web01", "format": format, "fd": 0})));
    }
}

#[test]
fn what_exists_is_not_overwritten_and_the_agent_not_even_asked() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "precious").unwrap();
    let (agent, log) = agent(|call| panic!("{}", call.method));
    for line in ["vdi export web01", "vdi read web01 --length 512"] {
        let (refused, _) = run(&agent, &format!("{line} {}", file.path().display()));
        assert_eq!(refused.unwrap_err().exit_code(), 2);
    }
    assert_eq!(fs::read(file.path()).unwrap(), b"precious");
    assert!(methods(&log).is_empty());
}

#[test]
fn an_export_that_fails_or_is_cancelled_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.raw");
    for state in ["failed", "cancelled"] {
        let (agent, _) = agent(move |call| {
            File::from(call.fds[0].try_clone().unwrap()).write_all(b"half").unwrap();
            let mut job = job(state, &Value::Null);
            job["error"] = json!(failure(ErrorName::IoError));
            Ok(job)
        });
        assert!(run(&agent, &format!("vdi export web01 {}", path.display())).0.is_err());
        assert!(!path.exists(), "{state}");
    }
    let (agent, _) = agent(|_| Err(failure(ErrorName::VdiMissing)));
    assert!(run(&agent, &format!("vdi read web01 --length 512 {}", path.display())).0.is_err());
    assert!(!path.exists());
}

#[test]
fn an_import_passes_the_open_file_and_takes_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("golden.image.raw");
    fs::write(&path, "content").unwrap();
    let (agent, log) = agent(|call| {
        let mut content = String::new();
        File::from(call.fds[0].try_clone().unwrap()).read_to_string(&mut content).unwrap();
        assert_eq!(content, "content");
        Ok(job("done", &json!({"uuid": VDI})))
    });
    assert_eq!(text(&agent, &format!("vdi import {} --sr disks", path.display())), format!("{VDI}\n"));
    let expected = json!({"sr": "disks", "format": "auto", "name_label": "golden.image", "fd": 0});
    assert_eq!(log.lock().unwrap()[0].1, expected);
}

#[test]
fn a_write_is_as_long_as_its_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), [7; 1024]).unwrap();
    let (agent, log) = agent(|_| Ok(json!({})));
    text(&agent, &format!("vdi write web01 --offset 4KiB {}", file.path().display()));
    text(&agent, &format!("vdi write web01 --length 512 {}", file.path().display()));
    let log = log.lock().unwrap();
    assert_eq!(log[0].1, json!({"vdi": "web01", "offset": 4096, "length": 1024, "fd": 0}));
    assert_eq!(log[1].1, json!({"vdi": "web01", "offset": 0, "length": 512, "fd": 0}));
}

#[test]
fn a_document_and_an_image_do_not_share_stdout() {
    let (agent, log) = agent(|call| panic!("{}", call.method));
    for line in ["--json vdi export web01 -", "--json vdi read web01 --length 512 -"] {
        assert_eq!(run(&agent, line).0.unwrap_err().exit_code(), 2);
    }
    assert!(methods(&log).is_empty());
}
