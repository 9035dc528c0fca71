//! Lists and records as text.

use super::{SR, VDI, agent, coalesce_status, job, methods, text, willing};
use catena_types::{ErrorName, Failure};
use serde_json::{Value, json};

#[test]
fn lists_are_tables() {
    let (agent, _) = agent(willing);
    assert_eq!(
        text(&agent, "sr list"),
        format!(
            "NAME   UUID                                  TYPE  STATE        SIZE     USED   VIRTUAL  VDIS\n\
             disks  {SR}  file  attached  1.0 TiB  5.3 GiB  10.0 GiB     3\n"
        )
    );
    assert_eq!(
        text(&agent, "vdi list"),
        format!(
            "NAME   UUID                                      SIZE      OWN   SHARED  DEPTH  SNAPSHOT  ATTACHED\n\
             web01  {VDI}  10.0 GiB  8.0 KiB  5.3 GiB      2  false     -\n"
        )
    );
    assert_eq!(
        text(&agent, "job list"),
        "ID          KIND    STATE    PHASE    PROGRESS           UPDATED\n\
         12345678-1  import  running  copying  [==>       ] 25 %  2030-01-01T00:00:05Z\n"
    );
    assert_eq!(
        text(&agent, "event list"),
        "TIME                  SEVERITY  KIND         ABOUT     MESSAGE\n\
         2030-01-01T00:00:00Z  info      vdi.created  0b1d9c44  web01 created\n"
    );
}

#[test]
fn the_space_of_an_sr_is_six_lines() {
    let (agent, _) = agent(willing);
    assert_eq!(
        text(&agent, "sr stat disks"),
        "physical_size         1099511627776 (1.0 TiB)\n\
         physical_utilisation  5690831667 (5.3 GiB)\n\
         virtual_allocation    10737418240 (10.0 GiB)\n\
         free_space            549755813888 (512.0 GiB)\n\
         vdi_count             3\n\
         image_count           5\n"
    );
}

#[test]
fn the_worker_is_shown_with_what_it_does_and_what_waits() {
    let (agent, _) = agent(|call| {
        let mut busy = coalesce_status("running", "merging");
        let mut merge = job("running", &Value::Null);
        merge["kind"] = json!("merge");
        merge["rate"] = json!(85 << 20);
        merge["eta_seconds"] = json!(7);
        busy["current"] = merge;
        busy["queue"] =
            json!([{"image": VDI, "into": SR, "bytes": 8192}, {"image": SR, "into": VDI, "bytes": 1024}]);
        busy["unmerged_images"] = json!(3);
        busy["reclaimable_bytes"] = json!(1 << 30);
        if call.method == "SR.list" { willing(call) } else { Ok(json!({"srs": [busy]})) }
    });
    assert_eq!(
        text(&agent, "coalesce status"),
        "SR     STATE    REASON  CURRENT                                        QUEUE              UNMERGED  RECLAIMABLE\n\
         disks  running  why     merge [==>       ] 25 %, 85.0 MiB/s, 7 s left  2 merges, 9.0 KiB         3      1.0 GiB\n"
    );
}

#[test]
fn a_tree_is_asked_of_an_sr_first_and_then_of_a_disk() {
    let (of_sr, log) = agent(willing);
    text(&of_sr, "vdi tree disks");
    assert_eq!(methods(&log), ["SR.get_record", "VDI.get_tree"]);
    assert_eq!(log.lock().unwrap()[1].1, json!({"sr": "disks"}));

    let (of_vdi, log) = agent(|call| match call.method.as_str() {
        "SR.get_record" => Err(Failure::new(ErrorName::SrUnavailable, "no such SR")),
        "VDI.get_tree" if call.params["vdi"] == "none" => {
            Err(Failure::new(ErrorName::VdiMissing, "no such VDI"))
        }
        _ => willing(call),
    });
    text(&of_vdi, "vdi tree web01");
    assert_eq!(log.lock().unwrap()[1].1, json!({"vdi": "web01"}));
    let error = super::run(&of_vdi, "vdi tree none").0.unwrap_err();
    assert_eq!((error.to_string().as_str(), error.exit_code()), ("'none' is neither an SR nor a VDI", 3));
    assert_eq!(super::run(&of_vdi, "--json vdi tree web01 --dot").0.unwrap_err().exit_code(), 2);
}
