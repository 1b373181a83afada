"""Text of data sets and models, made fit to show on a terminal or a page."""

# Characters that a terminal would obey, a page would drop, or that change the direction of what stands around them.
_ORDERS = [*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029, 0xFEFF]
_PICTURES = {code: 0x2400 + code for code in range(0x20)} | {0x7F: 0x2421}
_TABLE: dict[int, str] = {code: chr(_PICTURES[code]) if code in _PICTURES else f"<U+{code:04X}>" for code in _ORDERS}
_TABLE |= {code: f"<U+{code:04X}>" for code in range(0xD800, 0xE000)}
_TABLE[ord("\n")], _TABLE[ord("\t")] = "\n", "\t"


def visible(text: str) -> str:
    """Show control characters, changes of direction and halves of characters as what they are; keep lines and tabs.

    Args:
        text: any string.

    Returns:
        A string that can be encoded as UTF-8 and that no terminal acts on.
    """
    return text.replace("\r\n", "\n").translate(_TABLE)
