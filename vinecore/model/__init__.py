"""Values: frozen or slotted, comparable, with no behaviour that touches the world."""
