"""Checks docs/messages.md: each message in it is in the source, and all that end a run are in it."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def text_of(node):
    """Return a string literal as the documentation writes it, with … for inserted values."""
    if isinstance(node, ast.JoinedStr):
        return ''.join(part.value if isinstance(part, ast.Constant) else '…' for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ''


def said():
    """Yield every string literal in the package."""
    for path in (ROOT / 'wrcan_arch').rglob('*.py'):
        yield from filter(None, map(text_of, ast.walk(ast.parse(path.read_text(encoding='utf-8')))))


def documented():
    return re.findall(r'^\| `(.+?)` \|', (ROOT / 'docs' / 'messages.md').read_text(encoding='utf-8'), re.MULTILINE)


def in_order(pieces, text):
    place = 0
    for piece in pieces:
        place = text.find(piece, place)
        if place < 0:
            return False
        place += len(piece)
    return True


OTHERS = {  # PyYAML's, BasicSR's
    'could not determine a constructor for the tag',
    'Multiple validation datasets are *only* supported by SRModel.',
}


def test_documented_messages_are_the_programs():
    texts = list(said())
    joined = ' '.join(texts)  # for messages that are built from several literals
    for message in documented():
        pieces = [piece.strip(':;., ()') for piece in re.split('…|; ', message)]
        pieces = [piece for piece in pieces if len(piece) > 3]
        assert (
            message in OTHERS
            or any(in_order(pieces, text) for text in texts)
            or (all(piece in joined for piece in pieces) and pieces)
        ), message


def test_all_that_ends_a_run_is_documented():
    documentation = ' '.join(documented())
    for path in (ROOT / 'wrcan_arch').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'RunError':
                message = text_of(node.args[0]).partition('. ')[0]
                assert message and message in documentation, message or f'{path.name}: give RunError its text itself'
