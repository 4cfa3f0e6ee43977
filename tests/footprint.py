def furniture():
    return []


def heavy():
    return []


def slow():
    return []


def additions():
    return []
