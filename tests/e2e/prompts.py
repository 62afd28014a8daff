# ruff: noqa: RUF001 - letters of other alphabets
"""Prompts that differ from the first words on, in several languages, of 50 to 1500 tokens."""

_TEXTS = (
    "The lighthouse keeper wrote down what he saw each night, and this is the page about the storm.",
    "Es war einmal ein Müller, der hatte drei Söhne und eine Mühle am Rand des großen Waldes.",
    "Il était une fois une petite ville où toutes les horloges retardaient de sept minutes.",
    "Había una vez un viejo marinero que contaba historias en la plaza del pueblo cada domingo.",
    "昔々、山のふもとに小さな村があり、人々は毎朝早くから畑で働いていました。",
    "从前有一座山，山上有一座庙，庙里有一个老和尚在给小和尚讲故事。",
    "Жил-был старик со своею старухой у самого синего моря тридцать лет и три года.",
    "def fibonacci(n: int) -> int:\n    # the n-th number of the sequence\n",
    "SELECT customers.name, SUM(orders.total) FROM customers JOIN orders ON customers.id = orders.customer\n",
    "A list of things to pack for a week in the mountains: boots, a map, two warm jumpers, matches,",
    "Ingredients for a simple bread: flour, water, salt and yeast. First, mix the flour with",
    "Once upon a time a fox and a heron agreed to build a bridge across the widest river they knew.",
    "O gato preto dormia em cima do telhado enquanto a chuva caía devagar sobre a cidade velha.",
    "Pewnego razu w małym miasteczku nad rzeką mieszkał zegarmistrz, który nigdy się nie spieszył.",
    "Bir varmış bir yokmuş, uzak bir ülkede denizi hiç görmemiş bir balıkçı yaşarmış.",
    "La vecchia biblioteca aveva una porta che nessuno apriva mai, tranne il custode.",
    "The committee met on Tuesday to discuss the budget for the new railway station and the park.",
    "In the beginning there was a small program that counted the stars, and nobody knew who had written it.",
    "Chapter one. My grandmother kept bees behind the house, and every summer she gave each hive a name.",
    "Log of the expedition, day forty: the river has frozen and the dogs are restless tonight.",
)
_LONG = {17: 45, 19: 60}  # so often are these repeated
_TIMES = 2


def prompts() -> list[str]:
    return [
        " ".join(f"{text} ({part})" for part in range(_LONG.get(number, _TIMES + (number + 1) % 3)))
        for number, text in enumerate(_TEXTS)
    ]
