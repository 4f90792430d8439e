"""Names given by users, such as class and file names, made safe to print."""


def printable(text: str) -> str:
    r"""Return a text with escapes in place of control codes and of bytes that are no text; line breaks stay.

    A terminal would obey a control code, and a file name in another encoding holds characters that cannot be printed.

    Example:
        >>> printable("cat\x1b[31m"), printable("caf\udce9")
        ('cat\\x1b[31m', 'caf\\udce9')
    """
    characters = []
    for character in text:
        if character.isprintable() or character == "\n":
            characters.append(character)
        else:
            characters.append(ascii(character)[1:-1])
    return "".join(characters)
