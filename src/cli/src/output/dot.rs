//! `vdi tree --dot`: the tree for graphviz, parents above their children.

use super::tree::{flatten, name, state};
use catena_rpc::Node;
use std::fmt::Write;

/// A digraph whose edges go from parent to child; base copies are grey.
pub(crate) fn render(roots: &[Node]) -> String {
    let mut text = String::from("digraph vdis {\n  node [shape=box];\n");
    for node in flatten(roots) {
        let style = if node.vdi.is_none() { " style=filled fillcolor=lightgrey" } else { "" };
        let caption = [quoted(&name(node)), node.own_bytes.to_string(), quoted(&state(node))];
        // Writing to a String does not fail.
        let _ = writeln!(text, "  \"{}\" [label=\"{}\"{style}];", node.image, caption.join("\\n"));
        for child in &node.children {
            let _ = writeln!(text, "  \"{}\" -> \"{}\";", node.image, child.image);
        }
    }
    text + "}\n"
}

fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_and_edge_is_there_and_quotes_are_escaped() {
        let text = render(&crate::output::tree::tests::sample());
        assert!(text.starts_with("digraph vdis {\n") && text.ends_with("}\n"));
        assert_eq!(text.matches(" -> ").count(), 4);
        assert_eq!(text.matches("[label=").count(), 6);
        assert!(text.contains("[label=\"web01 \\\"before\\\" upgrade\\n8.0 KiB\\n\"];"), "{text}");
        assert!(text.contains("[label=\"base copy\\n1.1 GiB\\nmerging 43 %\" style=filled"), "{text}");
    }
}
