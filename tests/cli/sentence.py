"""What a user reads when a command fails."""

# Of words that wan-tiny knows, or a note on stderr would say that it does not.
BALL = "a red ball moves left over"


def assert_sentence(result, *words, code=2):
    """The result of a command that failed as it should; `words` are in its sentence, in this order."""
    assert result.code == code, result
    assert result.err.startswith("jano-dist: "), result.err
    assert result.err.endswith("\n"), result.err
    assert result.err.count("\n") == 1, result.err
    assert "Traceback" not in result.err
    sentence = result.err.removeprefix("jano-dist: ")
    assert "  " not in sentence
    assert len(sentence) < 600
    position = 0
    for word in words:
        position = sentence.find(word, position)
        assert position >= 0, (word, sentence)
