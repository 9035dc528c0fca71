//! `vdi tree` as administrators of these systems know it: one chain per root, columns aligned over all of them.

use super::printable;
use catena_rpc::Node;

/// The least width of the label column.
const LABEL_WIDTH: usize = 28;

/// One line before its columns are padded.
struct Line {
    label: String,
    attachment: String,
    own: String,
    depth: String,
    is_snapshot: bool,
    uuid: String,
    state: String,
}

/// Columns: label, attachment, own bytes, depth, whether it is a snapshot, uuid (of the image for a base copy), state.
pub(crate) fn render(roots: &[Node]) -> String {
    let mut lines = Vec::new();
    for root in roots {
        collect(root, "", "", &mut lines);
    }
    let width = |column: fn(&Line) -> &str, least: usize| {
        lines.iter().map(|line| column(line).chars().count()).max().unwrap_or(0).max(least)
    };
    let label = width(|line| &line.label, LABEL_WIDTH);
    let own = width(|line| &line.own, 7);
    let depth = width(|line| &line.depth, 0);
    lines
        .iter()
        .map(|line| {
            let text = format!(
                "{:label$}  {:<4}   {:>own$}  depth {:<depth$}  {:<5}  {}   {}",
                line.label, line.attachment, line.own, line.depth, line.is_snapshot, line.uuid, line.state,
            );
            text.trim_end().to_owned() + "\n"
        })
        .collect()
}

/// The lines of `node` and what hangs from it. `lead` is drawn before its own label, `below` before those of its children.
fn collect(node: &Node, lead: &str, below: &str, lines: &mut Vec<Line>) {
    let attached = node.vdi.as_ref().and_then(|vdi| vdi.attached.as_deref());
    lines.push(Line {
        label: format!("{lead}{}", name(node)),
        attachment: attached.map_or_else(|| "----".to_owned(), printable),
        own: node.own_bytes.to_string(),
        depth: node.depth.to_string(),
        is_snapshot: node.vdi.as_ref().is_some_and(|vdi| vdi.is_a_snapshot),
        uuid: node.vdi.as_ref().map_or_else(|| node.image.to_string(), |vdi| vdi.uuid.to_string()),
        state: state(node),
    });
    for (n, child) in node.children.iter().enumerate() {
        let (branch, indent) = if n + 1 == node.children.len() { ("`-- ", "    ") } else { ("|-- ", "|   ") };
        collect(child, &format!("{below}{branch}"), &format!("{below}{indent}"), lines);
    }
}

/// What a node is called: its disk's label, `base copy`, or its container where neither fits.
pub(crate) fn name(node: &Node) -> String {
    match &node.vdi {
        Some(vdi) if !vdi.name_label.is_empty() => printable(&vdi.name_label),
        Some(_) => "(no name)".to_owned(),
        None if node.hidden => "base copy".to_owned(),
        None => printable(&node.container),
    }
}

/// What is worth saying about a node: `merging 43 %`, `garbage`, `attached`, or nothing.
pub(crate) fn state(node: &Node) -> String {
    match (node.state.as_str(), node.progress_percent) {
        ("ok", _) if node.vdi.as_ref().is_some_and(|vdi| vdi.attached.is_some()) => "attached".to_owned(),
        ("ok", _) => String::new(),
        (state, Some(percent)) => format!("{} {percent} %", printable(state)),
        (state, None) => printable(state),
    }
}

/// Every node of the trees, parents before their children.
pub(crate) fn flatten(roots: &[Node]) -> Vec<&Node> {
    let mut nodes = Vec::new();
    let mut waiting: Vec<&Node> = roots.iter().rev().collect();
    while let Some(node) = waiting.pop() {
        nodes.push(node);
        waiting.extend(node.children.iter().rev());
    }
    nodes
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    /// A base copy with an attached disk and its snapshot below a second base copy.
    pub(crate) fn sample() -> Vec<Node> {
        let vdi = |n: u64, label: &str, snapshot: bool, attached: Option<&str>| {
            json!({
                "uuid": format!("{n:08x}-0000-4000-8000-000000000000"), "sr": "00000000-0000-4000-8000-0000000000aa",
                "name_label": label, "name_description": "", "image": "00000000-0000-4000-8000-0000000000bb",
                "container": "c.vhd", "format": "vhd", "virtual_size": 1, "own_bytes": 1, "shared_bytes": 0, "depth": 2,
                "is_a_snapshot": snapshot, "snapshot_of": null, "created": "2030-01-01T00:00:00Z",
                "attached": attached, "state": "ok", "other_config": {},
            })
        };
        let node = |n: u64,
                    own: u64,
                    depth: u64,
                    vdi: serde_json::Value,
                    children: Vec<serde_json::Value>| {
            json!({
                "image": format!("{n:08x}-0000-4000-9000-000000000000"), "container": format!("{n}.vhd"), "parent": null,
                "format": "vhd", "virtual_size": 1 << 30, "own_bytes": own, "depth": depth, "hidden": vdi.is_null(),
                "state": "ok", "vdi": vdi, "children": children,
            })
        };
        let mut merging = node(
            2,
            1_181_116_006,
            2,
            serde_json::Value::Null,
            vec![
                node(3, 8192, 3, vdi(3, "web01", false, Some("rw")), vec![]),
                node(4, 8192, 3, vdi(4, "web01 \"before\" upgrade", true, None), vec![]),
            ],
        );
        merging["state"] = json!("merging");
        merging["progress_percent"] = json!(43);
        let other = node(5, 8192, 2, vdi(5, "", false, None), vec![]);
        let orphan = {
            let mut orphan = node(6, 0, 1, serde_json::Value::Null, vec![]);
            orphan["hidden"] = json!(false);
            orphan["state"] = json!("orphan");
            orphan
        };
        let root = node(1, 5_690_831_667, 1, serde_json::Value::Null, vec![merging, other]);
        serde_json::from_value(json!([root, orphan])).unwrap()
    }

    #[test]
    fn a_tree_is_drawn_with_aligned_columns() {
        assert_eq!(
            render(&sample()),
            "\
base copy                       ----   5.3 GiB  depth 1  false  00000001-0000-4000-9000-000000000000
|-- base copy                   ----   1.1 GiB  depth 2  false  00000002-0000-4000-9000-000000000000   merging 43 %
|   |-- web01                   rw     8.0 KiB  depth 3  false  00000003-0000-4000-8000-000000000000   attached
|   `-- web01 \"before\" upgrade  ----   8.0 KiB  depth 3  true   00000004-0000-4000-8000-000000000000
`-- (no name)                   ----   8.0 KiB  depth 2  false  00000005-0000-4000-8000-000000000000
6.vhd                           ----       0 B  depth 1  false  00000006-0000-4000-9000-000000000000   orphan
"
        );
        assert_eq!(render(&[]), "");
    }

    #[test]
    fn flattening_keeps_the_order_of_the_lines() {
        let roots = sample();
        let containers: Vec<&str> = flatten(&roots).iter().map(|node| node.container.as_str()).collect();
        assert_eq!(containers, ["1.vhd", "2.vhd", "3.vhd", "4.vhd", "5.vhd", "6.vhd"]);
    }
}
